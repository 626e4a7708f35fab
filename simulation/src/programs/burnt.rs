//! Commits that no client sends: a file is to be led to a chunk that was freed and is not forgotten yet. Its id is burnt, and its
//! shards may be half deleted (R1).

use holdfast_client::network::Call;
use holdfast_common::{ChunkId, InodeId, NodeId};
use holdfast_proto::control::Volume;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, Commit, Extent, FileCommit, MutateRequest, MutateResponse, Mutation};

use super::Desk;
use super::data::FILES;
use crate::machines::{METANODES, STRANGE_SEQUENCES};

/// Pause between two, at most.
const PAUSE_MS_MAX: u64 = 6_000;
/// Freed chunks that one is chosen from, at most.
const FREED_MAX: usize = 64;
const LENGTH_BYTES: u64 = 4096;

/// Asks a metanode, and the volume manager.
pub(crate) struct Lines {
    pub(crate) mutate: Box<dyn Fn(NodeId, MutateRequest) -> Call<MutateResponse> + Send + Sync>,
    pub(crate) volume: Box<dyn Fn() -> Call<Volume> + Send + Sync>,
}

/// Runs until the programs are to stop.
pub(crate) async fn name_burnt_chunks(mut desk: Desk, lines: Lines) {
    while desk.goes_on() {
        desk.pause(PAUSE_MS_MAX).await;
        if let Ok(volume) = (lines.volume)().await
            && let Some(request) = commit(&mut desk, &volume)
        {
            ask(&lines, request).await;
        }
    }
}

/// Asks one metanode after another, until one is the leader.
async fn ask(lines: &Lines, request: MutateRequest) {
    for node in METANODES {
        let Ok(response) = (lines.mutate)(node, request.clone()).await else { continue };
        if response.code() != Code::NotLeader {
            let taken = response.commits.iter().any(|commit| commit.code() == Code::Ok);
            assert!(!taken, "a chunk that was freed is named again: {request:?}");
            return;
        }
    }
}

/// The client's session names one of the chunks that are freed, under a sequence of its own.
fn commit(desk: &mut Desk, volume: &Volume) -> Option<MutateRequest> {
    let (name, at, sequence) =
        (FILES[desk.random.index(FILES.len())], desk.random.index(FREED_MAX), desk.random.bits());
    let truth = desk.truth();
    let session = truth.session_of(desk.client)?;
    let table = truth.log.table();
    let attr = table.lookup(InodeId::ROOT, name.as_bytes()).ok()?;
    let mut freed = table.freed_chunks(i64::MAX, (i64::MIN, ChunkId(0)), FREED_MAX);
    let record = if freed.is_empty() { None } else { Some(freed.swap_remove(at % freed.len()).record) }?;
    let length_bytes = LENGTH_BYTES.min(record.length_bytes.into());
    let extent = Extent { file_offset: 0, length_bytes, chunk: record.chunk, chunk_offset: 0 };
    let file = FileCommit {
        inode: attr.inode,
        truncate_generation: attr.truncate_generation,
        extents: vec![extent],
        size_at_least: length_bytes,
        ..FileCommit::default()
    };
    let op = Op::Commit(Commit { chunks: vec![record], files: vec![file] });
    Some(MutateRequest {
        volume: volume.volume,
        incarnation: volume.incarnation,
        session,
        sequence: STRANGE_SEQUENCES | sequence,
        acknowledged_below: 0,
        mutation: Some(Mutation { op: Some(op) }),
    })
}
