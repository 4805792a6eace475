//! What a confined program has of a network: the port's HTTP door.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};

use crate::{Attempt, io};

pub(crate) const ATTEMPTS: [Attempt; 16] = [
    ("open a datagram socket", || io(UdpSocket::bind("127.0.0.1:0"))),
    ("open a raw socket", || open(AddressFamily::INET, SocketType::RAW)),
    ("open an IPv6 socket", || open(AddressFamily::INET6, SocketType::STREAM)),
    ("open a packet socket", || open(AddressFamily::PACKET, SocketType::RAW)),
    ("open a netlink socket", || open(AddressFamily::NETLINK, SocketType::RAW)),
    ("open a vsock socket", || open(AddressFamily::from_raw(40), SocketType::STREAM)),
    ("connect to the world", || outside(Ipv4Addr::new(1, 1, 1, 1), 443)),
    ("connect to the host", || outside(Ipv4Addr::new(10, 0, 2, 2), 7007)),
    ("connect to a neighbour", || outside(Ipv4Addr::new(192, 168, 0, 1), 7007)),
    ("connect to a cloud's metadata", || outside(Ipv4Addr::new(169, 254, 169, 254), 80)),
    ("broadcast", || outside(Ipv4Addr::BROADCAST, 7007)),
    ("find another door on the loopback", other_door),
    ("take the door's port", || io(TcpListener::bind(DOOR))),
    ("share the door's port", share_the_port),
    ("come to the door under another name", || ask("evil.test", "")),
    ("come to the door from a page", || ask("127.0.0.1:7007", "Origin: http://evil.test\r\n")),
];

const DOOR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7007);
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks the door as a client does.
pub(crate) fn door() -> Result<(), String> {
    ask("127.0.0.1:7007", "")
}

/// One request with this `Host` and these further headers; what is not
/// answered with 200 is an error.
fn ask(host: &str, headers: &str) -> Result<(), String> {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = exchange(&request).map_err(|error| error.to_string())?;
    let status = answer.lines().next().unwrap_or_default();
    if status.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(status.to_owned()) }
}

fn exchange(request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&DOOR.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn open(family: AddressFamily, kind: SocketType) -> Result<(), String> {
    io(socket(family, kind, None))
}

/// Whether there is any way there: a peer that refuses was reached.
fn outside(address: Ipv4Addr, port: u16) -> Result<(), String> {
    let target = SocketAddr::from((address, port));
    match TcpStream::connect_timeout(&target, Duration::from_secs(5)) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => io(other),
    }
}

/// Any listener but the port's on the loopback's lower numbers.
fn other_door() -> Result<(), String> {
    let others = (1..=8192).filter(|port| *port != DOOR.port());
    let here = others.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let beside = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), DOOR.port()));
    let found =
        here.chain([beside]).find(|target| TcpStream::connect_timeout(target, PATIENCE).is_ok());
    found.map(drop).ok_or_else(|| "none answers".to_owned())
}

/// Two listeners on one number take connections from each other.
fn share_the_port() -> Result<(), String> {
    let own = socket(AddressFamily::INET, SocketType::STREAM, None);
    let own = own.map_err(|error| error.to_string())?;
    io(sockopt::set_socket_reuseaddr(&own, true))?;
    io(sockopt::set_socket_reuseport(&own, true))?;
    io(bind(&own, &DOOR))?;
    io(rustix::net::listen(&own, 1))
}
