//! Reserved ports and the way from ::1.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use types::{PortBinding, PortProtocol};

use crate::Test;
use crate::support::*;

pub(crate) const TESTS: &[Test] = &[
    ("reserved_ports_are_nobody_elses", reserved),
    ("a_port_that_is_taken_is_named_and_tried_again", taken),
    ("loopback_is_carried_over", carried),
    ("a_reserved_port_listens_for_loopback_only", carried_reserved),
];

fn binding(protocol: PortProtocol, port: u16) -> PortBinding {
    PortBinding { protocol, port, address: None }
}

fn reserved() {
    let lab = Lab::new();
    let client = lab.start();
    let one = PortBinding { address: Some("127.0.0.5".parse().unwrap()), ..binding(TCP, 4_003) };
    let wanted =
        [binding(TCP, 4_001), binding(UDP, 4_002), one, binding(PortProtocol::Sctp, 4_004)];
    assert_eq!(lab.wait(client.reserve(&wanted)).unwrap(), []);
    for address in ["0.0.0.0:4001", "127.0.0.1:4001", "[::]:4001", "[::1]:4001", "127.0.0.5:4003"] {
        assert_eq!(
            TcpListener::bind(address).unwrap_err().kind(),
            ErrorKind::AddrInUse,
            "{address}"
        );
    }
    for address in ["127.0.0.1:4002", "[::1]:4002"] {
        assert_eq!(UdpSocket::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse, "{address}");
    }
    // Nobody listens.
    for address in ["127.0.0.1:4001", "[::1]:4001"] {
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    assert!(TcpListener::bind("127.0.0.1:4003").is_ok());
    // After the worst they are back, and those no more wanted are free.
    let pid = lab.pid(&client);
    kill_hard(pid);
    assert_ne!(lab.pid(&client), pid);
    assert!(TcpListener::bind("127.0.0.1:4001").is_err());
    assert_eq!(lab.wait(client.reserve(&wanted[..1])).unwrap(), []);
    assert!(UdpSocket::bind("127.0.0.1:4002").is_ok());
    assert!(TcpListener::bind("127.0.0.1:4001").is_err());
}

fn taken() {
    let lab = Lab::new();
    let client = lab.start();
    let other = TcpListener::bind("[::1]:4010").unwrap();
    let wanted = [binding(TCP, 4_010), binding(TCP, 4_011)];
    assert_eq!(lab.wait(client.reserve(&wanted)).unwrap(), wanted[..1]);
    // Half of a binding is none.
    assert!(TcpListener::bind("127.0.0.1:4010").is_ok());
    drop(other);
    until("the port is reserved", || TcpListener::bind("[::1]:4010").is_err());
    assert_eq!(lab.wait(client.reserve(&wanted)).unwrap(), []);
}

fn carried() {
    let lab = Lab::new();
    let client = lab.start();
    let listener = TcpListener::bind("127.0.0.1:4020").unwrap();
    let socket = UdpSocket::bind("127.0.0.1:4020").unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let ports = [(TCP, 4_020), (UDP, 4_020)];
    lab.wait(client.forward_loopback6(&ports)).unwrap();

    let mut near = TcpStream::connect("[::1]:4020").unwrap();
    let (mut far, _) = listener.accept().unwrap();
    near.write_all(b"there").unwrap();
    let mut said = [0; 5];
    far.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"there");
    // Half closed is closed by half.
    near.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(far.read(&mut said).unwrap(), 0);
    far.write_all(b"again").unwrap();
    drop(far);
    let mut rest = String::new();
    near.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "again");

    let near = UdpSocket::bind("[::1]:0").unwrap();
    near.set_read_timeout(Some(DEADLINE)).unwrap();
    near.connect("[::1]:4020").unwrap();
    for text in [b"one", b"two"] {
        near.send(text).unwrap();
        let (length, from) = socket.recv_from(&mut said).unwrap();
        assert_eq!(&said[..length], text);
        socket.send_to(text, from).unwrap();
        assert_eq!(near.recv(&mut said).unwrap(), 3);
    }
    lab.wait(client.forward_loopback6(&[])).unwrap();
    assert!(TcpStream::connect("[::1]:4020").is_err());
}

fn carried_reserved() {
    let lab = Lab::new();
    let client = lab.start();
    let run = |args: &str| {
        let status = std::process::Command::new("ip").args(args.split(' ')).status().unwrap();
        assert!(status.success(), "{args}");
    };
    run("address add 2001:db8::5/128 dev lo nodad");
    // The kernel takes it for its own a little later, after it has a route to it.
    let answers = || {
        let probe = TcpListener::bind("[2001:db8::5]:0")?;
        TcpStream::connect(probe.local_addr()?)
    };
    until("the address answers", || answers().is_ok());
    lab.wait(client.reserve(&[binding(TCP, 4_030), binding(UDP, 4_030)])).unwrap();
    lab.wait(client.forward_loopback6(&[(TCP, 4_030), (UDP, 4_030)])).unwrap();
    // Nobody is behind 127.0.0.1: no rules lead on, so it ends in a reset, which may come before
    // this side has seen that it was connected.
    for address in ["[::1]:4030", "[2001:db8::5]:4030"] {
        let ended = TcpStream::connect(address).and_then(|mut near| near.read(&mut [0]));
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset, "{address}");
    }
    // It stays reserved when it is forwarded no more.
    lab.wait(client.forward_loopback6(&[])).unwrap();
    let refused = TcpStream::connect("[::1]:4030").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(TcpListener::bind("[::1]:4030").is_err());
    lab.wait(client.forward_loopback6(&[(TCP, 4_030)])).unwrap();
    let ended = TcpStream::connect("[::1]:4030").and_then(|mut near| near.read(&mut [0]));
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    run("address del 2001:db8::5/128 dev lo");
}

const TCP: PortProtocol = PortProtocol::Tcp;
const UDP: PortProtocol = PortProtocol::Udp;
