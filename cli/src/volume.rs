//! `holdfast volume ...`: asks a volume manager, and prints its answer.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use holdfast_proto::control::admin_client::AdminClient;
use holdfast_proto::control::{
    CreateVolumeRequest, DeleteVolumeRequest, ListVolumesRequest, ShowVolumeRequest, Volume, VolumeState,
};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use crate::args::{VolumeArgs, VolumeCommand, volmgr_address};
use crate::output::{show_size, table};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer: creating a volume may take 20 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to a volume manager.
pub(crate) async fn connect(address: &str) -> Result<AdminClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .ok()
        .filter(|_| {
            address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        })
        .ok_or_else(|| anyhow!("'{address}' is no address of a volume manager: HOST:PORT"))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT).tcp_nodelay(true);
    let channel = endpoint.connect().await.map_err(|error| {
        let reason = root_cause(&error);
        anyhow!("no volume manager answers at {address} ({reason}): is 'holdfast up' running, or is it elsewhere (--volmgr)?")
    })?;
    Ok(AdminClient::new(channel))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Refusal of a volume manager, as a sentence.
pub(crate) fn refused(status: &tonic::Status) -> anyhow::Error {
    match status.message() {
        "" => anyhow!("the volume manager refuses: {}", status.code().description()),
        message => anyhow!("{message}"),
    }
}

/// Runs a volume command.
pub(crate) async fn run(args: VolumeArgs) -> Result<()> {
    let mut admin = connect(&volmgr_address(args.volmgr)).await?;
    match args.command {
        VolumeCommand::Create { name, code, quota } => {
            let request = CreateVolumeRequest {
                name,
                data_shards: code.k().into(),
                parity_shards: code.m().into(),
                quota_bytes: quota.unwrap_or(0),
            };
            let volume = admin.create_volume(request).await.map_err(|s| refused(&s))?.into_inner();
            print_volume(&volume, args.json)
        }
        VolumeCommand::List => {
            let answer = admin.list_volumes(ListVolumesRequest {}).await.map_err(|s| refused(&s))?.into_inner();
            print_list(&answer.volumes, args.json)
        }
        VolumeCommand::Show { name } => {
            let volume = admin.show_volume(ShowVolumeRequest { name }).await.map_err(|s| refused(&s))?.into_inner();
            print_volume(&volume, args.json)
        }
        VolumeCommand::Delete { name } => {
            admin.delete_volume(DeleteVolumeRequest { name: name.clone() }).await.map_err(|s| refused(&s))?;
            if args.json {
                print_json(&json!({ "deleted": name }))
            } else {
                println!("volume '{name}' is deleted; its space is freed in the background");
                Ok(())
            }
        }
    }
}

fn print_json(value: &Value) -> Result<()> {
    println!("{}", serde_json::to_string(value).context("JSON")?);
    Ok(())
}

fn state_name(volume: &Volume) -> &'static str {
    match VolumeState::try_from(volume.state) {
        Ok(VolumeState::Creating) => "creating",
        Ok(VolumeState::Active) => "active",
        Ok(VolumeState::Deleting) => "deleting",
        Err(_) => "unknown",
    }
}

fn json_of(volume: &Volume) -> Value {
    let metanode =
        |m: &holdfast_proto::control::Endpoint| json!({ "node": m.node, "address": m.address, "alive": m.alive });
    json!({
        "id": volume.volume,
        "name": volume.name,
        "state": state_name(volume),
        "code": format!("{}+{}", volume.data_shards, volume.parity_shards),
        "quota_bytes": if volume.quota_bytes == 0 { Value::Null } else { volume.quota_bytes.into() },
        "used_bytes": volume.used_bytes,
        "available_bytes": volume.available_bytes,
        "inodes": volume.inodes_count,
        "block_groups": volume.groups_count,
        "created_ns": volume.created_ns,
        "leader_node": if volume.leader_node == 0 { Value::Null } else { volume.leader_node.into() },
        "metanodes": volume.metanodes.iter().map(metanode).collect::<Vec<_>>(),
        "cluster": volume.cluster,
    })
}

fn quota_of(volume: &Volume) -> String {
    if volume.quota_bytes == 0 { "none".to_owned() } else { show_size(volume.quota_bytes) }
}

fn print_list(volumes: &[Volume], json: bool) -> Result<()> {
    if json {
        return print_json(&Value::Array(volumes.iter().map(json_of).collect()));
    }
    if volumes.is_empty() {
        println!("no volumes; make one with: holdfast volume create NAME");
        return Ok(());
    }
    let head = ["NAME", "STATE", "CODE", "USED", "AVAILABLE", "QUOTA", "INODES"].map(str::to_owned).to_vec();
    let row = |v: &Volume| {
        vec![
            v.name.clone(),
            state_name(v).to_owned(),
            format!("{}+{}", v.data_shards, v.parity_shards),
            show_size(v.used_bytes),
            show_size(v.available_bytes),
            quota_of(v),
            v.inodes_count.to_string(),
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(volumes.iter().map(row)).collect();
    print!("{}", table(&rows));
    Ok(())
}

fn print_volume(volume: &Volume, json: bool) -> Result<()> {
    if json {
        return print_json(&json_of(volume));
    }
    let metanodes = volume.metanodes.iter().map(|m| {
        let role = if m.node == volume.leader_node { ", leader" } else { "" };
        let dead = if m.alive { "" } else { ", dead" };
        format!("{} (node {}{role}{dead})", m.address, m.node)
    });
    let line = |key: &str, value: String| vec![key.to_owned(), value];
    let rows = [
        line("name", volume.name.clone()),
        line("state", state_name(volume).to_owned()),
        line("code", format!("{}+{}", volume.data_shards, volume.parity_shards)),
        line("used", show_size(volume.used_bytes)),
        line("available", show_size(volume.available_bytes)),
        line("quota", quota_of(volume)),
        line("inodes", volume.inodes_count.to_string()),
        line("block groups", volume.groups_count.to_string()),
        line("metanodes", metanodes.collect::<Vec<_>>().join(", ")),
        line("cluster", volume.cluster.clone()),
    ];
    print!("{}", table(&rows));
    Ok(())
}
