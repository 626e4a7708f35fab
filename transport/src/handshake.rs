//! Agreement of two processes to talk: same protocol version, same cluster, all required features known. Pure.

use bytes::Bytes;
use holdfast_common::ClusterId;
use prost::Message;

/// Version of the frames and of what they may carry. Raised only by what feature bits cannot express.
pub const PROTOCOL_VERSION: u32 = 1;
/// Feature bits this code knows. None yet.
pub const KNOWN_FEATURES: u64 = 0;

/// Identity of a process towards its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Cluster that it belongs to.
    pub cluster: ClusterId,
}

/// First frame of either side.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    /// Protocol version.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Features without which the sender does not talk.
    #[prost(uint64, tag = "2")]
    pub required_features: u64,
    /// Features that the sender uses if the other knows them too.
    #[prost(uint64, tag = "3")]
    pub optional_features: u64,
    /// Cluster of the sender, 16 bytes.
    #[prost(bytes = "bytes", tag = "4")]
    pub cluster: Bytes,
}

/// Header of a refusal on stream 0; the reason's number is the frame's method field.
#[derive(Clone, PartialEq, Message)]
pub struct HelloRefused {
    /// Hello of the refusing side, for the message to a person.
    #[prost(message, optional, tag = "1")]
    pub hello: Option<Hello>,
}

/// Reason why two processes do not talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum HandshakeError {
    /// Another protocol version.
    #[error("it speaks protocol version {theirs}, this process {ours}")]
    WrongVersion { ours: u32, theirs: u32 },
    /// Another cluster.
    #[error("it belongs to cluster {theirs}, this process to {ours}")]
    WrongCluster { ours: ClusterId, theirs: ClusterId },
    /// One side requires features that the other does not know.
    #[error("one side requires features {unknown:#x} that the other does not know")]
    UnknownFeatures { unknown: u64 },
    /// The hello does not decode.
    #[error("its hello is malformed")]
    Malformed,
    /// The server has as many connections as it takes.
    #[error("it has too many connections")]
    TooManyConnections,
}

impl HandshakeError {
    pub(crate) fn code(self) -> u16 {
        match self {
            Self::WrongVersion { .. } => 1,
            Self::WrongCluster { .. } => 2,
            Self::UnknownFeatures { .. } => 3,
            Self::Malformed => 4,
            Self::TooManyConnections => 5,
        }
    }
}

/// Hello of this process.
#[must_use]
pub fn hello(identity: Identity) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        required_features: 0,
        optional_features: KNOWN_FEATURES,
        cluster: Bytes::copy_from_slice(&identity.cluster.0),
    }
}

/// Judges the peer's hello; the features both know, on success.
///
/// # Errors
/// The reason. The version is judged first: of another version nothing else can be believed.
pub fn judge(ours: Identity, theirs: &Hello) -> Result<u64, HandshakeError> {
    if theirs.version != PROTOCOL_VERSION {
        return Err(HandshakeError::WrongVersion { ours: PROTOCOL_VERSION, theirs: theirs.version });
    }
    let cluster = <[u8; 16]>::try_from(&theirs.cluster[..]).map_err(|_| HandshakeError::Malformed)?;
    if cluster != ours.cluster.0 {
        return Err(HandshakeError::WrongCluster { ours: ours.cluster, theirs: ClusterId(cluster) });
    }
    let unknown = theirs.required_features & !KNOWN_FEATURES;
    if unknown != 0 {
        return Err(HandshakeError::UnknownFeatures { unknown });
    }
    Ok((theirs.required_features | theirs.optional_features) & KNOWN_FEATURES)
}

/// Reading of a refusal by the refused side: its own judgement of the other's hello where that explains it.
#[must_use]
pub fn explain(ours: Identity, code: u16, header: &[u8]) -> HandshakeError {
    let theirs = HelloRefused::decode(header).ok().and_then(|refused| refused.hello);
    let judged = theirs.as_ref().map(|theirs| judge(ours, theirs));
    match (code, judged) {
        (_, Some(Err(error))) => error,
        (3, Some(Ok(_))) => {
            let theirs = theirs.map_or(0, |theirs| theirs.required_features | theirs.optional_features);
            HandshakeError::UnknownFeatures { unknown: hello(ours).required_features & !theirs }
        }
        (5, _) => HandshakeError::TooManyConnections,
        _ => HandshakeError::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Identity = Identity { cluster: ClusterId([1; 16]) };

    #[test]
    fn peers_of_one_cluster_and_version_agree() {
        assert_eq!(judge(OURS, &hello(OURS)), Ok(0));
    }

    #[test]
    fn an_unknown_optional_feature_is_left_unused() {
        let theirs = Hello { optional_features: 1 << 40, ..hello(OURS) };
        assert_eq!(judge(OURS, &theirs), Ok(0));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let other = Identity { cluster: ClusterId([2; 16]) };
        assert_eq!(
            judge(OURS, &hello(other)),
            Err(HandshakeError::WrongCluster { ours: OURS.cluster, theirs: other.cluster })
        );
        let newer = Hello { version: 2, ..hello(other) };
        assert_eq!(judge(OURS, &newer), Err(HandshakeError::WrongVersion { ours: 1, theirs: 2 }));
        let demanding = Hello { required_features: 6, ..hello(OURS) };
        assert_eq!(judge(OURS, &demanding), Err(HandshakeError::UnknownFeatures { unknown: 6 }));
        let short = Hello { cluster: Bytes::from_static(b"short"), ..hello(OURS) };
        assert_eq!(judge(OURS, &short), Err(HandshakeError::Malformed));
    }

    #[test]
    fn the_refused_side_learns_why() {
        let other = Identity { cluster: ClusterId([2; 16]) };
        let header = HelloRefused { hello: Some(hello(other)) }.encode_to_vec();
        assert_eq!(
            explain(OURS, 2, &header),
            HandshakeError::WrongCluster { ours: OURS.cluster, theirs: other.cluster }
        );
        let same = HelloRefused { hello: Some(hello(OURS)) }.encode_to_vec();
        assert_eq!(explain(OURS, 5, &same), HandshakeError::TooManyConnections);
        assert_eq!(explain(OURS, 9, b"\xff"), HandshakeError::Malformed);
    }

    #[test]
    fn the_bytes_of_a_hello_are_pinned() {
        let mut golden = vec![0x08, 1, 0x22, 16];
        golden.extend([1; 16]);
        assert_eq!(hello(OURS).encode_to_vec(), golden);
    }
}
