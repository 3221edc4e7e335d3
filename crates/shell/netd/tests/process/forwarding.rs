//! Names of others, and containers that mean harm.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use netd::{Forward, Origin, Upstream};

use crate::Test;
use crate::support::*;

pub(crate) const TESTS: &[Test] = &[
    ("other_names_are_asked_for_from_the_right_place", origins),
    ("servers_are_tried_in_turn_and_remembered", in_turn),
    ("a_cut_answer_is_asked_for_again_by_tcp", cut),
    ("questions_under_way_are_bounded", bounded),
    ("a_forged_answer_is_not_taken", forged),
    ("garbage_and_slow_connections_harm_nobody", hostile),
];

/// A server that answers with 192.0.2.N, or not at all. It ends with the process.
fn server(on: &str, last: u8, code: Option<ResponseCode>) -> (SocketAddr, Arc<AtomicUsize>) {
    let udp = UdpSocket::bind((on, 0)).unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4_096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            counter.fetch_add(1, Ordering::SeqCst);
            let Some(code) = code else { continue };
            let answer = reply(&buffer[..length], last, code, true);
            udp.send_to(&answer, from).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            let answer = reply(&question, last, code.unwrap(), false);
            stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    (address, asked)
}

/// Names that begin with `large` have 100 addresses.
fn reply(question: &[u8], last: u8, code: ResponseCode, cuts: bool) -> Vec<u8> {
    let question = Message::from_vec(question).unwrap();
    let name = question.queries[0].name().clone();
    let is_large = name.to_ascii().starts_with("large");
    let mut message = question.into_response();
    message.metadata.response_code = code;
    message.edns = None;
    if code == ResponseCode::NoError {
        let count = if is_large { 100 } else { 1 };
        for _ in 0..count {
            let data = RData::A(A(std::net::Ipv4Addr::new(192, 0, 2, last)));
            message.add_answer(Record::from_rdata(name.clone(), 300, data));
        }
    }
    if is_large && cuts {
        message.answers.clear();
        message.metadata.truncation = true;
    }
    message.to_vec().unwrap()
}

fn servers(list: &[(SocketAddr, Origin)]) -> Forward {
    Forward::Servers(
        list.iter().map(|(address, from)| Upstream { address: *address, from: *from }).collect(),
    )
}

fn origins() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let (host, _) = server("127.0.0.1", 1, Some(ResponseCode::NoError));
    let (inside, _) = space.run(|| server("127.0.0.1", 2, Some(ResponseCode::NoError)));
    for (address, from, expected) in
        [(host, Origin::Host, "192.0.2.1"), (inside, Origin::Container, "192.0.2.2")]
    {
        let forward = servers(&[(address, from)]);
        let port = lab.wait(client.serve(container("a", &space, &[1], forward))).unwrap();
        assert_eq!(space.addresses(port, "www.example."), [expected]);
        let by_tcp = space.ask_by_tcp(port, "tcp.example.", RecordType::A);
        assert_eq!(addresses(&by_tcp), [expected]);
    }
    let forward = servers(&[]);
    let port = lab.wait(client.serve(container("a", &space, &[1], forward))).unwrap();
    let nobody = space.ask(port, "www.example.", RecordType::A);
    assert_eq!(nobody.metadata.response_code, ResponseCode::ServFail);
}

fn in_turn() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let (silent, _) = server("127.0.0.1", 1, None);
    let (failing, failures) = server("127.0.0.1", 2, Some(ResponseCode::ServFail));
    let (good, asked) = server("127.0.0.1", 3, Some(ResponseCode::NoError));
    let host = Origin::Host;
    let forward = servers(&[(silent, host), (failing, host), (good, host)]);
    let port = lab.wait(client.serve(container("a", &space, &[1], forward))).unwrap();
    assert_eq!(space.addresses(port, "www.example."), ["192.0.2.3"]);
    let begun = Instant::now();
    // In any spelling, and with the number of the second question.
    assert_eq!(space.addresses(port, "WWW.example."), ["192.0.2.3"]);
    assert!(begun.elapsed().as_secs() < 1);
    assert_eq!((failures.load(Ordering::SeqCst), asked.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(lab.wait(client.status()).unwrap().counters.cached, 1);
}

fn cut() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let (address, _) = server("127.0.0.1", 1, Some(ResponseCode::NoError));
    let forward = servers(&[(address, Origin::Host)]);
    let port = lab.wait(client.serve(container("a", &space, &[1], forward))).unwrap();
    assert!(space.ask(port, "large.example.", RecordType::A).metadata.truncation);
    assert_eq!(space.ask_by_tcp(port, "large.example.", RecordType::A).answers.len(), 100);
    // Now it is known, and still too much for a datagram.
    assert!(space.ask(port, "large.example.", RecordType::A).metadata.truncation);
}

fn bounded() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let (silent, asked) = server("127.0.0.1", 1, None);
    let forward = servers(&[(silent, Origin::Host)]);
    let port = lab.wait(client.serve(container("a", &space, &[1], forward))).unwrap();
    lab.wait(client.update(&directory())).unwrap();
    let socket = space.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    socket.connect(("127.0.0.11", port)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let send = |numbers: std::ops::Range<u64>| {
        for n in numbers {
            let question = question(&format!("n{n}.example."), RecordType::A);
            socket.send(&question.to_vec().unwrap()).unwrap();
        }
    };
    // No more at a time than the kernel's queue takes.
    send(0..200);
    until("they are taken", || lab.wait(client.status()).unwrap().counters.questions == 200);
    send(200..300);
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap();
    let refused = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(refused.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(space.addresses(port, "web."), ["10.0.1.100"]);
    until("the server is asked", || asked.load(Ordering::SeqCst) >= 200);
    let counters = lab.wait(client.status()).unwrap().counters;
    assert!(counters.refused >= 44 && counters.forwarded <= 256, "{counters:?}");
}

fn forged() {
    let (lab, space) = (Lab::new(), Space::new());
    let client = lab.start();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4_096];
        let (length, from) = udp.recv_from(&mut buffer).unwrap();
        let question = &buffer[..length];
        let good = reply(question, 1, ResponseCode::NoError, true);
        let mut wrong_number = reply(question, 66, ResponseCode::NoError, true);
        wrong_number[0] ^= 1;
        let mut wrong_name = reply(question, 66, ResponseCode::NoError, true);
        wrong_name[13] ^= 1;
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.send_to(&reply(question, 66, ResponseCode::NoError, true), from).unwrap();
        for answer in [&b"x"[..], &wrong_number, &wrong_name, question, &good] {
            udp.send_to(answer, from).unwrap();
        }
    });
    let forward = servers(&[(address, Origin::Host)]);
    let port = lab.wait(client.serve(container("a", &space, &[1], forward))).unwrap();
    assert_eq!(space.addresses(port, "www.example."), ["192.0.2.1"]);
    assert_eq!(lab.wait(client.status()).unwrap().counters.mismatched, 4);
}

fn hostile() {
    let (lab, space, other) = (Lab::new(), Space::new(), Space::new());
    let client = lab.start();
    let port = lab.serve(&client, "a", &space, &[1]);
    let other_port = lab.serve(&client, "b", &other, &[1]);
    lab.wait(client.update(&directory())).unwrap();
    let socket = space.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    socket.connect(("127.0.0.11", port)).unwrap();
    {
        for length in (0..2_000_usize).chain([60_000]) {
            let bytes: Vec<u8> = (0..length).map(|at| (at * length % 251) as u8).collect();
            socket.send(&bytes).unwrap();
            if length % 25 == 0 && length < 2_000 {
                // No more at a time than the kernel's queue takes.
                let taken = || lab.wait(client.status()).unwrap().counters.questions;
                until("they are taken", || taken() > length as u64);
            }
        }
        // A name that points to itself.
        let mut looped = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        looped.extend([0xc0, 12, 0, 1, 0, 1]);
        socket.send(&looped).unwrap();
    }
    let held: Vec<TcpStream> = space.run(|| {
        // Each says that much is to come.
        (0..1_000)
            .map(|_| {
                let mut stream = TcpStream::connect(("127.0.0.11", port)).unwrap();
                let _ = stream.write_all(&[1]);
                stream
            })
            .collect()
    });
    until("too many are refused", || {
        lab.wait(client.status()).unwrap().counters.connections_refused >= 900
    });
    assert_eq!(space.addresses(port, "web."), ["10.0.1.100"]);
    assert_eq!(addresses(&other.ask_by_tcp(other_port, "web.", RecordType::A)), ["10.0.1.100"]);
    until("slow ones are closed", || {
        lab.wait(client.status()).unwrap().counters.connections_slow >= 100
    });
    assert_eq!(addresses(&space.ask_by_tcp(port, "web.", RecordType::A)), ["10.0.1.100"]);
    assert!(lab.wait(client.status()).unwrap().counters.malformed > 1_900);
    drop(held);
}
