//! An operator, who makes volumes and deletes them again while everybody else works.

use std::time::Duration;

use holdfast_client::CallFailed;
use holdfast_common::VolumeId;
use holdfast_proto::control::{CreateVolumeRequest, Volume, VolumeState};

use super::Desk;
use crate::machines::CODE;
use crate::packet::Request;

/// Pause before the volume manager is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Longest life of a volume, and pause between two.
const LIFE_MS_MAX: u64 = 4_000;

/// Asks the volume manager; a volume, if the answer has one.
pub(crate) type Ask = Box<dyn Fn(Request) -> holdfast_client::network::Call<Option<Volume>> + Send + Sync>;

/// Runs until the programs are to stop.
pub(crate) async fn work_on_volumes(mut desk: Desk, ask: Ask) {
    while desk.goes_on() {
        let name = {
            let mut truth = desk.truth();
            truth.volumes.names += 1;
            format!("other{}", truth.volumes.names)
        };
        make(&desk, &ask, &name).await;
        desk.pause(LIFE_MS_MAX).await;
        delete(&desk, &ask, &name).await;
        desk.truth().volumes.deleted += 1;
        desk.pause(LIFE_MS_MAX).await;
    }
}

/// Makes a volume, and waits until it can be mounted.
async fn make(desk: &Desk, ask: &Ask, name: &str) {
    let (data_shards, parity_shards) = CODE;
    let wanted = CreateVolumeRequest { name: name.to_owned(), data_shards, parity_shards, quota_bytes: 0 };
    loop {
        if let Ok(Some(volume)) = ask(Request::CreateVolume(wanted.clone())).await {
            return desk.truth().volumes.told_active(VolumeId(volume.volume));
        }
        // It may have been made, and nobody was told.
        if let Ok(Some(volume)) = ask(Request::ShowVolume(name.to_owned())).await
            && volume.state() == VolumeState::Active
        {
            return desk.truth().volumes.told_active(VolumeId(volume.volume));
        }
        desk.runtime.sleep(RETRY_PAUSE).await;
    }
}

/// Deletes a volume, whether or not it was deleted already.
async fn delete(desk: &Desk, ask: &Ask, name: &str) {
    loop {
        match ask(Request::DeleteVolume(name.to_owned())).await {
            Ok(_) => break,
            Err(CallFailed::Volmgr(why)) if why.contains("no volume") => break,
            Err(_) => desk.runtime.sleep(RETRY_PAUSE).await,
        }
    }
}

/// Deletes what a former life of this program may have left. Nobody else may be at work.
pub(crate) async fn clear_volumes(desk: &Desk, ask: &Ask) {
    let names = desk.truth().volumes.names;
    for number in 1..=names {
        delete(desk, ask, &format!("other{number}")).await;
    }
}
