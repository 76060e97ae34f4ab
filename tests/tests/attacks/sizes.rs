//! Sizes of segments and links: a GSO packet counts by the size of its segments, each with its own headers.

use super::lab::{PORT, count, host, lab, prepared, uplink};
use anyhow::{Context, Result, ensure};
use harness::configs::UPLINK;
use harness::{Namespace, capture::Capture, patience};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
const ETHERNET: usize = 14;
/// The MTU of the container's link, and of its uplink in the tests with a narrow one (RFC 2516).
const WIDE: usize = 1500;
const NARROW: usize = 1492;

/// A datagram socket in `ns` whose sends are cut into datagrams of `size` (`UDP_SEGMENT`, udp(7)).
fn cutting(ns: &Namespace, to: SocketAddr, size: usize) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = ns.run(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        Ok(socket)
    })?;
    let size = libc::c_int::try_from(size)?;
    let length = libc::socklen_t::try_from(size_of_val(&size))?;
    // SAFETY: the kernel reads one integer, and the size says so.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), length)
    };
    ensure!(done == 0, "UDP_SEGMENT: {}", std::io::Error::last_os_error());
    Ok(socket)
}

/// Switches offloads off, so that each segment is seen as it is on a wire.
fn one_by_one(device: &Namespace, out: &Namespace) -> Result<()> {
    device.sh(&format!("ethtool -K {UPLINK} tx off tso off gso off"))?;
    out.sh("ethtool -K eth0 gro off").map(drop)
}

/// Sends a stream from `from` to `to`, a port of `out`; fails unless all of it arrives.
fn stream(from: &Namespace, out: &Namespace, to: SocketAddr) -> Result<()> {
    let data: Vec<u8> = (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let listener = out.run(|| Ok(TcpListener::bind(to)?))?;
    let mut sender = from.run(|| Ok(TcpStream::connect_timeout(&to, patience(PATIENCE))?))?;
    let (mut receiver, _) = listener.accept()?;
    sender.set_write_timeout(Some(patience(PATIENCE)))?;
    receiver.set_read_timeout(Some(patience(PATIENCE)))?;
    let came = std::thread::scope(|scope| {
        let sends = scope.spawn(|| {
            sender.write_all(&data)?;
            sender.shutdown(std::net::Shutdown::Write)
        });
        let mut came = Vec::with_capacity(data.len());
        receiver.read_to_end(&mut came)?;
        sends.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        anyhow::Ok(came)
    });
    ensure!(came.with_context(|| format!("to {to}"))? == data, "other bytes came to {to}");
    Ok(())
}

/// As QUIC sends: `UDP_SEGMENT` with datagrams as large as the link takes, with an IP header and 8 bytes of UDP header
/// (RFC 768). The limit must not assume the longer header of TCP.
#[test]
fn datagrams_in_one_packet_that_fit_the_link_arrive() -> Result<()> {
    const COUNT: u8 = 8;
    let lab = lab(|_| ())?;
    one_by_one(&lab.device.ns, &lab.out)?;
    let wire = Capture::start(&lab.out, "eth0", false)?;
    for ((host, device), sizes) in host().into_iter().zip(uplink()).zip([[1460, 1461, 1472], [1440, 1441, 1452]]) {
        let to = SocketAddr::new(host, PORT);
        let receiver = lab.out.run(|| Ok(UdpSocket::bind(to)?))?;
        receiver.set_read_timeout(Some(patience(PATIENCE)))?;
        let mut buffer = [0; 2000];
        for size in sizes {
            let sender = cutting(&lab.a.ns, to, size)?;
            let datagrams: Vec<u8> = (0..COUNT).flat_map(|number| vec![number; size]).collect();
            // The first packet opens the flow, the second one belongs to a known flow.
            for time in 0..2 {
                let what = |number| format!("{size} bytes to {to}, {time}: datagram {number}");
                sender.send(&datagrams).with_context(|| what(0))?;
                for number in 0..COUNT {
                    let (length, from) = receiver.recv_from(&mut buffer).with_context(|| what(number))?;
                    ensure!(from.ip() == device, "{}: it came from {from}", what(number));
                    ensure!(buffer[..length] == vec![number; size], "{}: {length} other bytes", what(number));
                }
            }
        }
    }
    let largest = wire.finish()?.received.largest;
    ensure!(largest == WIDE + ETHERNET, "{largest} bytes in a frame");
    Ok(())
}

/// RFC 1191 section 4, RFC 8201 section 4: a packet that is larger than the next link is refused, and its sender is
/// told. Here it is TCP with timestamps (RFC 7323: a header of 32 bytes) to a host whose link takes more than the
/// uplink.
#[test]
fn segments_with_options_do_not_leave_larger_than_the_uplink() -> Result<()> {
    let narrow = |device: &harness::Device| device.ns.ip(&format!("link set {UPLINK} mtu {NARROW}"));
    let wide = |config: &mut serde_json::Value| config["network"]["pools"]["internal"]["mtu"] = json!(WIDE);
    let (lab, _) = prepared(wide, narrow, &[])?;
    lab.out.ip("link set eth0 mtu 1600")?;
    one_by_one(&lab.device.ns, &lab.out)?;
    for host in host() {
        let wire = Capture::start(&lab.out, "eth0", false)?;
        stream(&lab.a.ns, &lab.out, SocketAddr::new(host, PORT))?;
        let largest = wire.finish()?.received.largest;
        ensure!(largest == NARROW + ETHERNET, "to {host}: {largest} bytes in a frame");
    }
    Ok(())
}

/// A BIG TCP packet over IPv6 has a jumbo payload option (RFC 2675), which the kernel removes before it makes the
/// segments (`ipv6_hopopt_jumbo_remove`). Segments that fit must pass.
#[test]
fn segments_of_big_tcp_that_fit_are_not_refused() -> Result<()> {
    let lab = lab(|config| config["network"]["pools"]["internal"]["big_tcp"] = json!(true))?;
    for host in host() {
        let grown = lab.device.counted(|| stream(&lab.a.ns, &lab.out, SocketAddr::new(host, PORT)))?;
        ensure!(count(&grown, "too-big") == 0, "to {host}: {grown:?}");
    }
    Ok(())
}
