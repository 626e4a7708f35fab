//! Removing a name, which programs on names and on data do.

use holdfast_client::Error;
use holdfast_common::InodeId;
use holdfast_proto::meta::mutation::Op;

use super::Desk;

/// An outcome without its value, as the truth is told it.
pub(super) fn told<T>(outcome: &Result<T, Error>) -> Result<(), &Error> {
    outcome.as_ref().map(drop)
}

pub(super) async fn remove(desk: &mut Desk, parent: InodeId, name: &'static str, directory: bool) {
    let low = desk.truth().observed;
    let fs = desk.fs.clone();
    let removing = async move {
        if directory {
            fs.remove_directory(parent, name.as_bytes()).await
        } else {
            fs.unlink(parent, name.as_bytes()).await
        }
    };
    let Some(outcome) = desk.unless_interrupted(10, 3000, removing).await else { return };
    desk.truth().told("remove", low, told(&outcome), |_, op, _| {
        let Op::Unlink(op) = op else { return false };
        op.parent == parent.0 && op.name == name.as_bytes() && op.directory == directory
    });
}
