//! The volume manager's silence, as a node tells people of it.

use tonic::Status;

/// Logs that the volume manager does not answer: each reason once, however often the call is tried again.
#[derive(Debug)]
pub struct Complaint {
    sentence: &'static str,
    last_reason: Option<String>,
}

impl Complaint {
    /// `sentence` is logged with each reason.
    #[must_use]
    pub fn new(sentence: &'static str) -> Self {
        Self { sentence, last_reason: None }
    }

    /// Logs the reason of a failed call, unless the call before failed for the same one.
    pub fn about(&mut self, status: &Status) {
        if self.is_news(status.message()) {
            tracing::warn!(reason = status.message(), "{}", self.sentence);
        }
    }

    /// Takes note of an answer: the next failure is news again, whatever its reason.
    pub fn end(&mut self) {
        self.last_reason = None;
    }

    fn is_news(&mut self, reason: &str) -> bool {
        let is_news = self.last_reason.as_deref() != Some(reason);
        if is_news {
            self.last_reason = Some(reason.to_owned());
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_until_there_was_an_answer() {
        let mut complaint = Complaint::new("no answer");
        assert_eq!(
            ["refused", "refused", "late", "late"].map(|why| complaint.is_news(why)),
            [true, false, true, false]
        );
        complaint.end();
        assert_eq!(["late", "late"].map(|why| complaint.is_news(why)), [true, false]);
        complaint.end();
        assert!(complaint.is_news(""), "a failure without a reason is told, too");
    }
}
