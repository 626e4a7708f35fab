//! Cost of the transport: CPU time of both ends together, as decision D7 (docs/RULES.md) states it.
//!
//! Client and server run in this process on runtimes of their own, so the process's CPU time is that of both ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use holdfast_common::ClusterId;
use holdfast_transport::{Call, Client, ClientLimits, Identity, Refusal, Reply, Server, ServerLimits, Service};
use prost::Message;
use tokio::runtime::Runtime;

const IDENTITY: Identity = Identity { cluster: ClusterId([1; 16]) };
/// Longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls before the clock starts.
const WARM_UP_CALLS: u64 = 200;
/// The request's body is thrown away.
const PUT: u16 = 1;
/// The answer's body is as long as the request's header says.
const GET: u16 = 2;

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(uint64, tag = "1")]
    length_bytes: u64,
    #[prost(bytes = "bytes", tag = "2")]
    filler: Bytes,
}

struct Store {
    content: Bytes,
}

impl Service for Store {
    async fn call(&self, mut call: Call) -> Result<Reply, Refusal> {
        let header: Header = call.message()?;
        let length = usize::try_from(header.length_bytes).map_err(|_| Refusal::Malformed("length"))?;
        let answer = Header { length_bytes: 0, filler: header.filler };
        match call.method {
            PUT => Ok(Reply::message(&answer)),
            GET => Ok(Reply::with_body(&answer, vec![self.content.slice(..length)])),
            _ => Err(Refusal::UnknownMethod),
        }
    }
}

struct Case {
    name: &'static str,
    method: u16,
    body_bytes: usize,
    depth: usize,
}

const CASES: &[Case] = &[
    Case { name: "put 4 KiB, depth 1", method: PUT, body_bytes: 4096, depth: 1 },
    Case { name: "put 4 KiB, depth 2", method: PUT, body_bytes: 4096, depth: 2 },
    Case { name: "put 4 KiB, depth 4", method: PUT, body_bytes: 4096, depth: 4 },
    Case { name: "put 4 KiB, depth 16", method: PUT, body_bytes: 4096, depth: 16 },
    Case { name: "get 4 KiB, depth 1", method: GET, body_bytes: 4096, depth: 1 },
    Case { name: "get 4 KiB, depth 16", method: GET, body_bytes: 4096, depth: 16 },
    Case { name: "put 256 KiB, depth 8", method: PUT, body_bytes: 256 << 10, depth: 8 },
    Case { name: "get 256 KiB, depth 8", method: GET, body_bytes: 256 << 10, depth: 8 },
    Case { name: "put 1 MiB, depth 4", method: PUT, body_bytes: 1 << 20, depth: 4 },
    Case { name: "get 1 MiB, depth 4", method: GET, body_bytes: 1 << 20, depth: 4 },
];

/// One case's result.
#[derive(Debug, serde::Serialize)]
struct Cost {
    case: &'static str,
    calls: u64,
    cpu_us_per_call: f64,
    latency_us: f64,
    calls_per_s: f64,
    cpu_s_per_gb: f64,
    gb_per_s: f64,
}

/// Runs all cases, each for `seconds`, and prints a table, or JSON.
pub(crate) fn run(seconds: f64, threads: usize, connections: usize, json: bool) -> anyhow::Result<()> {
    let (serving, calling) = (runtime(threads)?, runtime(threads)?);
    let content = Bytes::from(vec![0x5a; 1 << 20]);
    let service = Arc::new(Store { content: content.clone() });
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = serving.block_on(Server::bind(address, IDENTITY, service, ServerLimits::default()))?;
    let limits = ClientLimits { connections_per_peer: connections, ..ClientLimits::default() };
    let client = calling.block_on(async { Client::new(IDENTITY, limits) });
    let mut costs = Vec::new();
    for case in CASES {
        measure(&calling, &client, &server, case, &content, WARM_UP_CALLS, Duration::ZERO)?;
        let cost = measure(&calling, &client, &server, case, &content, 0, Duration::from_secs_f64(seconds))?;
        if !json {
            println!(
                "{:<22} {:>8.1} us CPU/call {:>9.1} us latency {:>9.0} calls/s {:>7.2} s CPU/GB {:>6.2} GB/s",
                cost.case, cost.cpu_us_per_call, cost.latency_us, cost.calls_per_s, cost.cpu_s_per_gb, cost.gb_per_s
            );
        }
        costs.push(cost);
    }
    if json {
        println!("{}", serde_json::to_string(&costs)?);
    }
    drop(client);
    serving.block_on(server.shutdown());
    Ok(())
}

fn runtime(threads: usize) -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("cannot start a runtime")
}

/// Keeps `depth` calls in flight for a time, but at least `calls_min`.
fn measure(
    runtime: &Runtime,
    client: &Client,
    server: &Server,
    case: &Case,
    content: &Bytes,
    calls_min: u64,
    time: Duration,
) -> anyhow::Result<Cost> {
    let (to, began, cpu_before) = (server.local_addr(), Instant::now(), cpu_time()?);
    let mut callers = Vec::new();
    for _ in 0..case.depth {
        let (client, content) = (client.clone(), content.slice(..case.body_bytes));
        let (method, body_bytes) = (case.method, case.body_bytes);
        callers.push(runtime.spawn(async move {
            let header = Header { length_bytes: body_bytes as u64, filler: Bytes::from_static(&[7; 64]) };
            let mut calls = 0_u64;
            while calls < calls_min || began.elapsed() < time {
                let body = if method == PUT { vec![content.clone()] } else { Vec::new() };
                let answer = client.call(to, method, &header, body, CALL_TIMEOUT).await?;
                anyhow::ensure!(method == PUT || answer.body.len() == body_bytes, "an answer of another length");
                calls += 1;
            }
            Ok(calls)
        }));
    }
    let mut calls = 0;
    for caller in callers {
        calls += runtime.block_on(caller)??;
    }
    let wall_s = began.elapsed().as_secs_f64();
    let cpu_s = (cpu_time()? - cpu_before).as_secs_f64();
    let gigabytes = calls as f64 * case.body_bytes as f64 / 1e9;
    Ok(Cost {
        case: case.name,
        calls,
        cpu_us_per_call: cpu_s * 1e6 / calls as f64,
        latency_us: wall_s * 1e6 * case.depth as f64 / calls as f64,
        calls_per_s: calls as f64 / wall_s,
        cpu_s_per_gb: cpu_s / gigabytes,
        gb_per_s: gigabytes / wall_s,
    })
}

/// User and system time of this process so far, all threads.
fn cpu_time() -> anyhow::Result<Duration> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the pointer is valid for a write of one rusage.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    anyhow::ensure!(result == 0, "getrusage: {}", std::io::Error::last_os_error());
    // SAFETY: getrusage succeeded, so it has written the whole struct.
    let usage = unsafe { usage.assume_init() };
    let micros = |t: libc::timeval| u64::try_from(t.tv_sec * 1_000_000 + t.tv_usec);
    Ok(Duration::from_micros(micros(usage.ru_utime)? + micros(usage.ru_stime)?))
}
