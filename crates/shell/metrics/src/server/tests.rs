//! The port, asked over TCP.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::facts::BuildFacts;

struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

async fn started(answer: Result<Facts, Unavailable>) -> Running {
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.address();
    let (stop, stopped) = oneshot::channel::<()>();
    let facts = move || std::future::ready(answer.clone());
    let task = tokio::spawn(server.run(facts, async move { drop(stopped.await) }));
    Running { address, stop, task }
}

impl Running {
    async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

fn some() -> Facts {
    Facts { build: BuildFacts { version: "9.9", commit: "x" }, ..Facts::default() }
}

#[tokio::test]
async fn one_page_is_served_and_nothing_else() {
    let server = started(Ok(some())).await;
    let get = server.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(get.starts_with("HTTP/1.1 200 OK\r\n"), "{get}");
    assert!(get.contains("content-type: text/plain; version=0.0.4"), "{get}");
    assert!(get.contains(r#"shoal_build_info{version="9.9",commit="x"} 1"#), "{get}");
    let accept = "Accept: application/openmetrics-text; version=1.0.0";
    let open = server.ask(&format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\n\r\n")).await;
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
    let head = server.ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
        ("DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = server.ask(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    let many: String = (0..2 * HEADERS_MAX).map(|nth| format!("x-{nth}: 1\r\n")).collect();
    let refused = server.ask(&format!("GET /metrics HTTP/1.1\r\n{many}\r\n")).await;
    assert!(refused.starts_with("HTTP/1.1 431"), "{refused}");
    server.end().await;
}

#[tokio::test]
async fn what_cannot_be_told_is_said_to_be_so() {
    let server = started(Err(Unavailable("it is busy".into()))).await;
    let answer = server.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("it is busy\n"), "{answer}");
    server.end().await;
}

/// Those who say nothing hold all places, until their time is over.
#[tokio::test(start_paused = true)]
async fn silent_readers_do_not_hold_their_places_for_ever() {
    let server = started(Ok(some())).await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let get = server.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(get.starts_with("HTTP/1.1 200 OK\r\n"), "{get}");
    server.end().await;
}

#[tokio::test]
async fn an_address_in_use_is_refused() {
    let first = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let second = Server::bind(first.address()).await.unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
}
