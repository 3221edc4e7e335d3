//! Handshakes over loopback: who is accepted, who is refused, and what a swap changes.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base::{Id, Millis, Timestamp};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use pki::{
    Connector, Divert, Expected, IdentityFiles, NodeKey, NodeTls, PeerInfo, PinError, Pinned, Role,
    RootCa, Subject, TlsConn, accept_stream, connector, connector_for, diverted_stream, limits,
    wall_now,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::transport::server::Connected;
use tower::ServiceExt;

type Client = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

fn id(number: u128) -> Id {
    Id::from_u128(number).unwrap()
}

fn root() -> RootCa {
    RootCa::generate(wall_now()).unwrap()
}

struct Material {
    key: NodeKey,
    chain: String,
}

fn material(root: &RootCa, node: u128, role: Role, cluster: u128, now: Timestamp) -> Material {
    let key = NodeKey::generate().unwrap();
    let subject = Subject { node: id(node), role, cluster: id(cluster) };
    let expiry = Millis::from_secs(7_200);
    let issued = root.issue(&key.request().unwrap(), &subject, expiry, now).unwrap();
    Material { key, chain: issued.chain_pem }
}

fn tls(root: &RootCa, node: u128, role: Role, cluster: u128) -> Arc<NodeTls> {
    let material = material(root, node, role, cluster, wall_now());
    NodeTls::new(&material.key, &material.chain, &root.certificate_pem()).unwrap()
}

/// Serves connections and hands each peer out; each connection echoes until it is closed.
async fn serve(tls: &Arc<NodeTls>) -> (SocketAddr, tokio::sync::mpsc::Receiver<PeerInfo>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut incoming = accept_stream(listener, tls).unwrap();
    let (peers, seen) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Some(Ok(connection)) = incoming.next().await {
            let _ = peers.send(connection.connect_info()).await;
            tokio::spawn(echo(connection));
        }
    });
    (addr, seen)
}

async fn echo(mut connection: TlsConn) {
    let mut buffer = [0; 64];
    while let Ok(count @ 1..) = connection.read(&mut buffer).await {
        if connection.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}

/// Dials and proves that the connection carries data: under TLS 1.3 a refused client certificate
/// shows on the first read.
async fn talk(connector: Connector, addr: SocketAddr) -> std::io::Result<Client> {
    let uri: http::Uri = format!("http://{addr}").parse().unwrap();
    let mut client = connector.oneshot(uri).await?;
    ping(&mut client).await?;
    Ok(client)
}

async fn ping(client: &mut Client) -> std::io::Result<()> {
    let mut answer = [0; 4];
    client.inner_mut().write_all(b"ping").await?;
    client.inner_mut().read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let root = root();
    let (addr, mut seen) = serve(&tls(&root, 1, Role::Manager, 9)).await;
    let expected = Expected { node: Some(id(1)) };
    talk(connector(&tls(&root, 2, Role::Worker, 9), expected).unwrap(), addr).await.unwrap();
    let peer = seen.recv().await.unwrap().identity.unwrap();
    assert_eq!((peer.node, peer.role, peer.cluster), (id(2), Role::Worker, id(9)));
}

#[tokio::test]
async fn foreign_expired_and_mistaken_peers_are_refused() {
    let (root, other) = (root(), RootCa::generate(wall_now()).unwrap());
    let worker = || tls(&root, 2, Role::Worker, 9);
    let expired = |node, role| {
        let long_ago = wall_now() - Millis::from_secs(3 * 3_600);
        let material = material(&root, node, role, 9, long_ago);
        NodeTls::new(&material.key, &material.chain, &root.certificate_pem()).unwrap()
    };
    let anyone = Expected::default();
    let node_3 = Expected { node: Some(id(3)) };
    for (case, server, client, expected) in [
        ("server of another CA", tls(&other, 1, Role::Manager, 9), worker(), anyone),
        (
            "client of another CA",
            tls(&root, 1, Role::Manager, 9),
            tls(&other, 2, Role::Worker, 9),
            anyone,
        ),
        ("server is a worker", tls(&root, 1, Role::Worker, 9), worker(), anyone),
        ("server of another cluster", tls(&root, 1, Role::Manager, 8), worker(), anyone),
        ("server is another node", tls(&root, 1, Role::Manager, 9), worker(), node_3),
        ("server has expired", expired(1, Role::Manager), worker(), anyone),
        ("client has expired", tls(&root, 1, Role::Manager, 9), expired(2, Role::Worker), anyone),
    ] {
        let (addr, _seen) = serve(&server).await;
        let outcome = talk(connector(&client, expected).unwrap(), addr).await;
        assert!(outcome.is_err(), "{case}");
    }
}

#[tokio::test]
async fn a_new_certificate_shows_at_the_next_handshake_and_breaks_none() {
    let root = root();
    let (server, client) = (tls(&root, 1, Role::Manager, 9), tls(&root, 2, Role::Worker, 9));
    let (addr, mut seen) = serve(&server).await;
    let connector = connector(&client, Expected::default()).unwrap();
    let mut open = talk(connector.clone(), addr).await.unwrap();
    let before = seen.recv().await.unwrap().identity.unwrap();
    for (tls, node, role) in [(&server, 1, Role::Manager), (&client, 2, Role::Manager)] {
        let new = material(&root, node, role, 9, wall_now());
        tls.replace(&new.key, &new.chain, &root.certificate_pem()).unwrap();
    }
    ping(&mut open).await.unwrap();
    talk(connector, addr).await.unwrap();
    let after = seen.recv().await.unwrap().identity.unwrap();
    assert_ne!(before.serial, after.serial);
    assert_eq!((before.role, after.role), (Role::Worker, Role::Manager));
}

#[tokio::test]
async fn a_replacement_for_another_node_or_with_another_key_changes_nothing() {
    let root = root();
    let tls = tls(&root, 1, Role::Manager, 9);
    let before = tls.identity();
    let other = material(&root, 3, Role::Manager, 9, wall_now());
    assert!(tls.replace(&other.key, &other.chain, &root.certificate_pem()).is_err());
    let same = material(&root, 1, Role::Manager, 9, wall_now());
    assert!(tls.replace(&other.key, &same.chain, &root.certificate_pem()).is_err());
    assert!(tls.replace(&same.key, &same.chain, "").is_err());
    assert_eq!(tls.identity(), before);
}

#[tokio::test]
async fn a_pinned_client_learns_the_root_and_comes_without_certificate() {
    let root = root();
    let (addr, mut seen) = serve(&tls(&root, 1, Role::Manager, 9)).await;
    let pinned = Pinned::new(root.digest()).unwrap();
    assert_eq!(pinned.root_pem(), Err(PinError::NoHandshake));
    talk(pinned.connector(), addr).await.unwrap();
    assert!(seen.recv().await.unwrap().identity.is_none());
    assert_eq!(pinned.root_pem().unwrap(), root.certificate_pem());
}

#[tokio::test]
async fn a_pinned_client_refuses_another_cluster_and_a_worker() {
    let (root, other) = (root(), RootCa::generate(wall_now()).unwrap());
    for (server, text) in [
        (tls(&other, 1, Role::Manager, 9), "--token: the CA of the cluster"),
        (tls(&root, 1, Role::Worker, 9), "certificate is refused"),
    ] {
        let (addr, _seen) = serve(&server).await;
        let pinned = Pinned::new(root.digest()).unwrap();
        assert!(talk(pinned.connector(), addr).await.is_err());
        let error = pinned.root_pem().unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[tokio::test]
async fn a_forged_chain_that_only_carries_the_pinned_root_is_refused() {
    let (root, forger) = (root(), RootCa::generate(wall_now()).unwrap());
    let mut forged = material(&forger, 1, Role::Manager, 9, wall_now());
    forged.chain.push_str(&root.certificate_pem());
    let server = NodeTls::new(&forged.key, &forged.chain, &forger.certificate_pem()).unwrap();
    let (addr, _seen) = serve(&server).await;
    let pinned = Pinned::new(root.digest()).unwrap();
    assert!(talk(pinned.connector(), addr).await.is_err());
    assert!(matches!(pinned.root_pem(), Err(PinError::Refused(_))));
}

#[tokio::test]
async fn silent_and_talkative_strangers_keep_nobody_out() {
    let root = root();
    let (addr, _seen) = serve(&tls(&root, 1, Role::Manager, 9)).await;
    let mut strangers = Vec::new();
    for number in 0..limits::HANDSHAKES_MAX + 100 {
        let mut stranger = TcpStream::connect(addr).await.unwrap();
        if number % 2 == 0 {
            let _ = stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        }
        strangers.push(stranger);
    }
    let client = connector(&tls(&root, 2, Role::Worker, 9), Expected::default()).unwrap();
    timeout(Duration::from_secs(5), talk(client, addr)).await.unwrap().unwrap();
}

#[tokio::test]
async fn strangers_with_a_handshake_lose_their_place_to_newer_ones() {
    let root = root();
    let (addr, mut seen) = serve(&tls(&root, 1, Role::Manager, 9)).await;
    tokio::spawn(async move { while seen.recv().await.is_some() {} });
    let known = connector(&tls(&root, 2, Role::Worker, 9), Expected::default()).unwrap();
    let mut known = talk(known, addr).await.unwrap();
    let stranger = || talk(Pinned::new(root.digest()).unwrap().connector(), addr);
    let mut oldest = stranger().await.unwrap();
    let mut others = Vec::new();
    for _ in 0..limits::STRANGERS_MAX {
        others.push(stranger().await.unwrap());
    }
    let ended = timeout(Duration::from_secs(5), oldest.inner_mut().read(&mut [0; 4])).await;
    assert!(!matches!(ended, Ok(Ok(1..)) | Err(_)), "{ended:?}");
    ping(others.last_mut().unwrap()).await.unwrap();
    ping(&mut known).await.unwrap();
}

#[tokio::test]
async fn a_stranger_that_says_nothing_is_not_borne_for_long() {
    let root = root();
    let (addr, _seen) = serve(&tls(&root, 1, Role::Manager, 9)).await;
    let mut silent = talk(Pinned::new(root.digest()).unwrap().connector(), addr).await.unwrap();
    let limit = limits::GREETING_TIMEOUT + Duration::from_secs(5);
    let ended = timeout(limit, silent.inner_mut().read(&mut [0; 4])).await;
    assert!(!matches!(ended, Ok(Ok(1..)) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn connections_of_another_protocol_are_handed_over() {
    let root = root();
    let server = tls(&root, 1, Role::Manager, 9);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (taker, diverted) = tokio::sync::mpsc::channel(4);
    let divert = Divert::new(b"special", taker);
    let mut ordinary = accept_stream(listener, &server).unwrap().divert(divert);
    let mut special = Box::pin(diverted_stream(diverted, &server, b"special").unwrap());
    let client = tls(&root, 2, Role::Manager, 9);
    for protocol in [&b"special"[..], b"h2", b"unknown"] {
        let connector = connector_for(&client, Expected::default(), protocol).unwrap();
        let dial = tokio::spawn(talk(connector, addr));
        let limit = Duration::from_millis(if protocol == b"unknown" { 300 } else { 5_000 });
        let arrived = timeout(limit, async {
            tokio::select! {
                biased;
                connection = special.next() => ("special", connection.unwrap().unwrap()),
                connection = ordinary.next() => ("ordinary", connection.unwrap().unwrap()),
            }
        });
        match (arrived.await, protocol) {
            (Ok((way, connection)), b"special" | b"h2") => {
                assert_eq!(way == "special", protocol == b"special");
                assert_eq!(connection.connect_info().identity.unwrap().node, id(2));
                tokio::spawn(echo(connection));
                dial.await.unwrap().unwrap();
            }
            (Err(_), b"unknown") => assert!(dial.await.unwrap().is_err()),
            (arrived, _) => panic!("{arrived:?}"),
        }
    }
}

#[tokio::test]
async fn a_channel_needs_host_and_port() {
    let root = root();
    let connector = connector(&tls(&root, 2, Role::Worker, 9), Expected::default()).unwrap();
    for address in ["", "10.0.0.1", ":2377", "a b:1"] {
        let error = pki::channel(address, connector.clone()).unwrap_err().to_string();
        assert!(error.contains("host:port"), "{address}: {error}");
    }
    pki::channel("[::1]:2377", connector).unwrap();
}

#[test]
fn stored_files_make_a_tls_identity() {
    let root = root();
    let dir = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(dir.path());
    let new = material(&root, 1, Role::Manager, 9, wall_now());
    let stored = pki::files::Stored {
        key: new.key,
        chain_pem: new.chain,
        roots_pem: root.certificate_pem(),
    };
    files.save(&stored).unwrap();
    let back = files.load().unwrap().unwrap();
    let tls = NodeTls::new(&back.key, &back.chain_pem, &back.roots_pem).unwrap();
    assert_eq!(tls.identity().node, id(1));
}
