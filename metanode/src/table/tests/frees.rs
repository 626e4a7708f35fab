//! What is taken on a full disk.

use crate::table::frees;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    AddGroups, CloseSession, CreateNode, Fallocate, FallocateMode, OpenSession, ReserveChunks, ReserveQuota, SetAttr,
    SetXattr, Unlink,
};

#[test]
fn who_mounts_to_delete_may_and_what_grows_may_not() {
    let punch = Fallocate { mode: FallocateMode::PunchHole.into(), ..Fallocate::default() };
    let truncate = SetAttr { size_bytes: Some(0), ..SetAttr::default() };
    let taken = [
        Op::OpenSession(OpenSession::default()),
        Op::Unlink(Unlink::default()),
        Op::SetAttr(truncate),
        Op::Fallocate(punch),
        Op::ReserveQuota(ReserveQuota { bytes: 0 }),
        Op::CloseSession(CloseSession {}),
    ];
    assert!(taken.iter().all(frees));
    let refused = [
        Op::Create(CreateNode::default()),
        Op::SetXattr(SetXattr::default()),
        Op::Fallocate(Fallocate::default()),
        Op::ReserveChunks(ReserveChunks { count: 1 }),
        Op::ReserveQuota(ReserveQuota { bytes: 1 }),
        Op::AddGroups(AddGroups::default()),
    ];
    assert!(!refused.iter().any(frees));
}
