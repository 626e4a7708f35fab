//! Client and server together on loopback.

#![allow(clippy::unwrap_used)]

mod probe;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use holdfast_common::ClusterId;
use holdfast_transport::frame::{Head, Kind};
use holdfast_transport::handshake::{HandshakeError, hello};
use holdfast_transport::{BODY_BYTES_MAX, Client, ClientLimits, Identity, Refusal, RpcError, Server, ServerLimits};
use probe::{ECHO, GATED, HANG, LARGE, Number, PANIC, Probe};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]) };
const LONG: Duration = Duration::from_secs(10);
fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn server(limits: ServerLimits) -> (Server, Arc<Probe>) {
    let probe = Arc::new(Probe::default());
    (Server::bind(any(), IDENTITY, Arc::clone(&probe), limits).await.unwrap(), probe)
}

fn client() -> Client {
    Client::new(IDENTITY, ClientLimits::default())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn echo(client: &Client, to: SocketAddr, value: u64, body: Bytes) -> Result<(), RpcError> {
    let mut answer = client.call(to, ECHO, &Number { value }, vec![body.clone()], LONG).await?;
    assert_eq!(answer.message::<Number>()?.value, value);
    assert_eq!(answer.body, body);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_of_all_sizes_at_once_get_their_own_answers() {
    let (server, _) = server(ServerLimits::default()).await;
    let (client, to) = (client(), server.local_addr());
    let mut calls = tokio::task::JoinSet::new();
    for value in 0..500_u64 {
        let client = client.clone();
        let length = [0, 1, 31, 4096, 65_535, 65_537, 300_000][usize::try_from(value % 7).unwrap()];
        let body = Bytes::from(vec![u8::try_from(value % 251).unwrap(); length]);
        calls.spawn(async move { echo(&client, to, value, body).await });
    }
    while let Some(result) = calls.join_next().await {
        result.unwrap().unwrap();
    }
    server.shutdown().await;
}

#[tokio::test]
async fn the_largest_body_passes_and_a_larger_one_is_refused_before_it_is_sent() {
    let (server, _) = server(ServerLimits::default()).await;
    let (client, to) = (client(), server.local_addr());
    let body = Bytes::from(vec![9; BODY_BYTES_MAX as usize]);
    echo(&client, to, 1, body.clone()).await.unwrap();
    let error =
        client.call(to, ECHO, &Number { value: 1 }, vec![body, Bytes::from_static(b"x")], LONG).await.unwrap_err();
    assert!(matches!(error, RpcError::TooLarge { .. }), "{error}");
    assert!(error.certainly_not_executed());
    echo(&client, to, 2, Bytes::new()).await.unwrap();
}

#[tokio::test]
async fn refusals_panics_and_oversized_answers_reach_the_caller_and_leave_the_connection_alive() {
    let (server, _) = server(ServerLimits::default()).await;
    let (client, to) = (client(), server.local_addr());
    for (method, refusal) in [(99, Refusal::UnknownMethod), (PANIC, Refusal::Internal), (LARGE, Refusal::Internal)] {
        let result = client.call(to, method, &Number { value: 1 }, vec![], LONG).await;
        assert_eq!(result, Err(RpcError::Refused(refusal)), "method {method}");
    }
    echo(&client, to, 1, Bytes::new()).await.unwrap();
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let (server, probe) = server(ServerLimits::default()).await;
    let (client, to) = (client(), server.local_addr());
    let result = client.call(to, HANG, &Number { value: 1 }, vec![], Duration::from_millis(30)).await;
    assert_eq!(result, Err(RpcError::Deadline));
    assert_eq!(probe.started.load(Ordering::SeqCst), 1);
    echo(&client, to, 2, Bytes::new()).await.unwrap();
}

#[tokio::test]
async fn calls_of_one_connection_end_each_at_its_own_deadline_whichever_was_made_first() {
    let (server, probe) = server(ServerLimits::default()).await;
    let (client, to) = (client(), server.local_addr());
    let hang = |value, timeout| {
        let client = client.clone();
        async move { client.call(to, HANG, &Number { value }, vec![], timeout).await }
    };
    let longest = tokio::spawn(hang(1, LONG));
    until("the longest call arrived", || probe.started.load(Ordering::SeqCst) == 1).await;
    // The next look at the deadlines is the longest call's: each of these has to bring it forward.
    for (value, ms) in [(2, 40), (3, 10), (4, 20)] {
        assert_eq!(hang(value, Duration::from_millis(ms)).await, Err(RpcError::Deadline));
    }
    let (slower, faster) = tokio::join!(hang(5, Duration::from_millis(30)), hang(6, Duration::from_millis(10)));
    assert_eq!((slower, faster), (Err(RpcError::Deadline), Err(RpcError::Deadline)));
    assert!(!longest.is_finished());
    longest.abort();
}

#[tokio::test]
async fn a_dropped_call_gives_its_place_back() {
    let (server, probe) = server(ServerLimits::default()).await;
    let client = Client::new(IDENTITY, ClientLimits { in_flight_max: 1, ..ClientLimits::default() });
    let to = server.local_addr();
    for round in 1..=3 {
        let (client_, probe_) = (client.clone(), Arc::clone(&probe));
        let call = tokio::spawn(async move { client_.call(to, HANG, &Number { value: 1 }, vec![], LONG).await });
        until("the call arrived", || probe_.started.load(Ordering::SeqCst) == 2 * round - 1).await;
        let full = client.call(to, ECHO, &Number { value: 1 }, vec![], Duration::from_millis(10)).await;
        assert_eq!(full, Err(RpcError::QueueFull));
        call.abort();
        echo(&client, to, 2, Bytes::new()).await.unwrap();
    }
}

#[tokio::test]
async fn a_broken_connection_fails_its_calls_at_once_and_the_next_call_reconnects() {
    let (first, probe) = server(ServerLimits { drain_timeout: Duration::ZERO, ..ServerLimits::default() }).await;
    let (client, to) = (client(), first.local_addr());
    let calls: Vec<_> = (0..5)
        .map(|value| {
            let client = client.clone();
            tokio::spawn(async move { client.call(to, HANG, &Number { value }, vec![], LONG).await })
        })
        .collect();
    until("the calls arrived", || probe.started.load(Ordering::SeqCst) == 5).await;
    let began = Instant::now();
    first.shutdown().await;
    for call in calls {
        assert_eq!(call.await.unwrap(), Err(RpcError::Disconnected));
    }
    assert!(began.elapsed() < LONG / 2);
    let error = client.call(to, ECHO, &Number { value: 1 }, vec![], LONG).await.unwrap_err();
    assert!(matches!(error, RpcError::Connect { .. }) && error.certainly_not_executed(), "{error}");

    let _second = Server::bind(to, IDENTITY, probe, ServerLimits::default()).await.unwrap();
    let deadline = Instant::now() + LONG;
    while let Err(error) = echo(&client, to, 1, Bytes::new()).await {
        assert!(error.certainly_not_executed() && Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_first_calls_share_one_connection() {
    let (server, _) = server(ServerLimits { connections_max: 1, ..ServerLimits::default() }).await;
    let (client, to) = (client(), server.local_addr());
    let calls: Vec<_> = (0..20)
        .map(|value| {
            let client = client.clone();
            tokio::spawn(async move { echo(&client, to, value, Bytes::new()).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn one_connection_too_many_is_refused_with_the_reason() {
    let (server, _) = server(ServerLimits { connections_max: 1, ..ServerLimits::default() }).await;
    let to = server.local_addr();
    let first = client();
    echo(&first, to, 1, Bytes::new()).await.unwrap();
    let reason = HandshakeError::TooManyConnections;
    assert_eq!(echo(&client(), to, 1, Bytes::new()).await, Err(RpcError::Handshake { to, reason }));
    echo(&first, to, 2, Bytes::new()).await.unwrap();
}

#[tokio::test]
async fn a_peer_of_another_cluster_is_refused_on_both_ends() {
    let (server, probe) = server(ServerLimits::default()).await;
    let to = server.local_addr();
    let stranger = Identity { cluster: ClusterId([8; 16]) };
    let client = Client::new(stranger, ClientLimits::default());
    let reason = HandshakeError::WrongCluster { ours: stranger.cluster, theirs: IDENTITY.cluster };
    let error = echo(&client, to, 1, Bytes::new()).await.unwrap_err();
    assert_eq!(error, RpcError::Handshake { to, reason });
    assert!(error.certainly_not_executed());
    assert_eq!(probe.started.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_server_of_another_version_or_demand_is_refused_by_the_client() {
    for (theirs, reason) in [
        (
            holdfast_transport::handshake::Hello { version: 9, ..hello(IDENTITY) },
            HandshakeError::WrongVersion { ours: 1, theirs: 9 },
        ),
        (
            holdfast_transport::handshake::Hello { required_features: 4, ..hello(IDENTITY) },
            HandshakeError::UnknownFeatures { unknown: 4 },
        ),
    ] {
        let listener = TcpListener::bind(any()).await.unwrap();
        let to = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&raw(Kind::Hello, 0, &theirs.encode_to_vec())).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        assert_eq!(echo(&client(), to, 1, Bytes::new()).await, Err(RpcError::Handshake { to, reason }));
        serving.await.unwrap();
    }
}

fn raw(kind: Kind, stream: u64, header: &[u8]) -> Vec<u8> {
    let head = Head {
        kind,
        method: ECHO,
        stream,
        header_bytes: u32::try_from(header.len()).unwrap(),
        body_bytes: 0,
        deadline_ms: 0,
    };
    [&head.encode()[..], header].concat()
}

/// Connects by hand and greets.
async fn raw_connection(to: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let hello = raw(Kind::Hello, 0, &hello(IDENTITY).encode_to_vec());
    stream.write_all(&hello).await.unwrap();
    let mut answer = vec![0; hello.len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[4], hello[4], "the server answers with a hello");
    stream
}

#[tokio::test]
async fn malformed_bytes_close_their_connection_and_nothing_more() {
    let (server, _) = server(ServerLimits::default()).await;
    let to = server.local_addr();
    let client = client();
    echo(&client, to, 1, Bytes::new()).await.unwrap();
    let oversized = Head {
        kind: Kind::Request,
        method: 1,
        stream: 1,
        header_bytes: 0,
        body_bytes: BODY_BYTES_MAX + 1,
        deadline_ms: 0,
    };
    let mut damaged = oversized.encode();
    damaged[9] ^= 1;
    for bytes in
        [&b"GET / HTTP/1.1\r\nHost: holdfast\r\n\r\n"[..], &oversized.encode(), &damaged, &raw(Kind::Response, 1, b"")]
    {
        let mut stream = raw_connection(to).await;
        stream.write_all(bytes).await.unwrap();
        // A reset counts as closed: the server left bytes of ours unread.
        let closed = tokio::time::timeout(LONG, stream.read(&mut [0; 1])).await.expect("the server closes");
        assert!(matches!(closed, Ok(0) | Err(_)));
        let mut unwelcome = TcpStream::connect(to).await.unwrap();
        unwelcome.write_all(bytes).await.unwrap();
        let closed = tokio::time::timeout(LONG, unwelcome.read(&mut [0; 1])).await.expect("the server closes");
        assert!(matches!(closed, Ok(0) | Err(_)));
    }
    let mut truncated = raw_connection(to).await;
    truncated.write_all(&oversized.encode()[..20]).await.unwrap();
    drop(truncated);
    echo(&client, to, 2, Bytes::new()).await.unwrap();
}

#[tokio::test]
async fn a_malformed_answer_fails_the_calls_with_what_was_wrong() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let to = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&raw(Kind::Hello, 0, &hello(IDENTITY).encode_to_vec())).await.unwrap();
        stream.read_exact(&mut [0; 120]).await.unwrap();
        stream.write_all(&[0xee; 64]).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let result = client().call(to, ECHO, &Number { value: 1 }, vec![Bytes::from_static(&[0; 256])], LONG).await;
    assert!(matches!(result, Err(RpcError::Frame(_))), "{result:?}");
    serving.await.unwrap();
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_as_overload_and_the_others_are_answered() {
    let (server, probe) = server(ServerLimits { in_flight_per_connection_max: 2, ..ServerLimits::default() }).await;
    let (client, to) = (client(), server.local_addr());
    let waiting: Vec<_> = (0..2)
        .map(|value| {
            let client = client.clone();
            tokio::spawn(async move { client.call(to, GATED, &Number { value }, vec![], LONG).await })
        })
        .collect();
    until("both run", || probe.started.load(Ordering::SeqCst) == 2).await;
    let refused = client.call(to, ECHO, &Number { value: 1 }, vec![], LONG).await;
    assert_eq!(refused, Err(RpcError::Refused(Refusal::Overloaded)));
    probe.gate.notify_waiters();
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    let deadline = Instant::now() + LONG;
    while let Err(error) = echo(&client, to, 1, Bytes::new()).await {
        assert!(error == RpcError::Refused(Refusal::Overloaded) && Instant::now() < deadline, "{error}");
    }
}

#[tokio::test]
async fn one_way_frames_arrive_in_order() {
    let (server, probe) = server(ServerLimits::default()).await;
    let (client, to) = (client(), server.local_addr());
    client.send_one_way(to, 1, Number { value: 1000 }.encode_to_vec().into(), vec![]);
    echo(&client, to, 1, Bytes::new()).await.unwrap();
    for value in 0..100 {
        client.send_one_way(to, 1, Number { value }.encode_to_vec().into(), vec![Bytes::from_static(b"body")]);
    }
    until("all arrived", || probe.one_ways.lock().len() == 100).await;
    assert!(probe.one_ways.lock().iter().copied().eq(0..100), "the one sent without a connection is dropped");
}

#[tokio::test]
async fn a_one_way_frame_to_nobody_has_a_connection_made() {
    let (server, probe) = server(ServerLimits::default()).await;
    let (client, to) = (client(), server.local_addr());
    let deadline = Instant::now() + LONG;
    while probe.one_ways.lock().is_empty() {
        assert!(Instant::now() < deadline);
        client.send_one_way(to, 1, Number { value: 1 }.encode_to_vec().into(), vec![]);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn one_way_frames_for_a_peer_that_does_not_read_are_dropped_beyond_a_number_of_bytes() {
    const FRAME_BYTES: usize = 256 << 10;
    // What the kernel holds of a connection of loopback, at most.
    const KERNEL_BYTES_MAX: usize = 16 << 20;
    let one_way_bytes_max = 4 * FRAME_BYTES;
    let (server, probe) = server(ServerLimits::default()).await;
    let to = server.local_addr();
    let client = Client::new(IDENTITY, ClientLimits { one_way_bytes_max, ..ClientLimits::default() });
    echo(&client, to, 1, Bytes::new()).await.unwrap();
    let frames_count = 2 * (KERNEL_BYTES_MAX + one_way_bytes_max) / FRAME_BYTES;
    let send = |value, length| {
        client.send_one_way(to, 1, Number { value }.encode_to_vec().into(), vec![vec![7; length].into()]);
    };
    // This thread alone reads, and does not until it waits.
    (0..frames_count).for_each(|value| send(value as u64, FRAME_BYTES));
    echo(&client, to, 2, Bytes::new()).await.unwrap();
    let arrived = std::mem::take(&mut *probe.one_ways.lock());
    assert!(arrived.len() < frames_count / 2 + 1, "{} of {frames_count} frames waited", arrived.len());
    assert!((0..arrived.len() as u64).eq(arrived.iter().copied()), "those that were taken come in order");
    send(7, 8 * one_way_bytes_max);
    until("a frame that waits alone arrived, however long", || *probe.one_ways.lock() == [7]).await;
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let to = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&raw(Kind::Hello, 0, &hello(IDENTITY).encode_to_vec())).await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        heard
    });
    let limits = ClientLimits { ping_interval: Duration::from_millis(20), ..ClientLimits::default() };
    let client = Client::new(IDENTITY, limits);
    let result = client.call(to, HANG, &Number { value: 1 }, vec![], LONG).await;
    assert_eq!(result, Err(RpcError::Disconnected));
    drop(client);
    assert!(serving.await.unwrap().windows(5).any(|w| w == [b'H', b'F', b'T', b'1', 7]), "it was pinged first");
}

#[tokio::test]
async fn a_quiet_peer_that_answers_pings_is_kept() {
    let ping_interval = Duration::from_millis(10);
    let (server, probe) = server(ServerLimits { ping_interval, ..ServerLimits::default() }).await;
    let client = Client::new(IDENTITY, ClientLimits { ping_interval, ..ClientLimits::default() });
    let to = server.local_addr();
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.call(to, GATED, &Number { value: 1 }, vec![], LONG).await }
    });
    until("the call arrived", || probe.started.load(Ordering::SeqCst) == 1).await;
    // This sleep is what is tested: many intervals of silence.
    tokio::time::sleep(ping_interval * 20).await;
    probe.gate.notify_waiters();
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_shutdown_waits_for_running_requests() {
    let (server, probe) = server(ServerLimits::default()).await;
    let (client, to) = (client(), server.local_addr());
    let call = tokio::spawn(async move { client.call(to, GATED, &Number { value: 1 }, vec![], LONG).await });
    until("the call arrived", || probe.started.load(Ordering::SeqCst) == 1).await;
    let stopping = tokio::spawn(server.shutdown());
    assert_eq!(call.await.unwrap(), Err(RpcError::Disconnected));
    assert!(!stopping.is_finished());
    probe.gate.notify_waiters();
    stopping.await.unwrap();
    assert_eq!(probe.finished.load(Ordering::SeqCst), 1);
    assert!(TcpStream::connect(to).await.is_err());
}

#[tokio::test]
async fn dropping_the_last_client_closes_its_connections() {
    let (server, _) = server(ServerLimits { connections_max: 1, ..ServerLimits::default() }).await;
    let to = server.local_addr();
    let first = client();
    echo(&first, to, 1, Bytes::new()).await.unwrap();
    drop(first);
    let deadline = Instant::now() + LONG;
    while let Err(error) = echo(&client(), to, 1, Bytes::new()).await {
        assert!(error.certainly_not_executed() && Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_never_go_astray_while_connections_break_and_calls_are_dropped() {
    let limits = ServerLimits { drain_timeout: Duration::from_millis(200), ..ServerLimits::default() };
    let (mut server, probe) = server(limits).await;
    let to = server.local_addr();
    let client = client();
    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..8_u64)
        .map(|caller| {
            let (client, answered) = (client.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                for round in 0_u64.. {
                    let value = round * 8 + caller;
                    let length = usize::try_from(value * 7919 % 150_000).unwrap();
                    let body = Bytes::from(vec![u8::try_from(value % 251).unwrap(); length]);
                    let patience = Duration::from_micros(value * 104_729 % 3000);
                    match tokio::time::timeout(patience, echo(&client, to, value, body)).await {
                        Ok(Ok(())) => drop(answered.fetch_add(1, Ordering::SeqCst)),
                        Ok(Err(RpcError::Disconnected | RpcError::Connect { .. })) | Err(_) => {}
                        Ok(Err(other)) => panic!("{other}"),
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..4 {
        let before = answered.load(Ordering::SeqCst);
        until("calls are answered", || answered.load(Ordering::SeqCst) > before + 20).await;
        assert!(callers.iter().all(|caller| !caller.is_finished()), "a caller saw an answer that was not its own");
        server.shutdown().await;
        server = Server::bind(to, IDENTITY, Arc::clone(&probe), limits).await.unwrap();
    }
    callers.iter().for_each(tokio::task::JoinHandle::abort);
}
