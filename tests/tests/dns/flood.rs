//! Clients that flood, are silent, or send invalid messages.

use super::upstream::outside;
use super::*;

/// A server that never answers, a flood of names, silent connections, half a question, and invalid messages: no other
/// client has to wait, and the daemon's memory stays within its limits.
#[test]
fn one_container_does_not_stop_the_others() -> Result<()> {
    let (device, _host, _server, bad) = outside(&masqueraded())?;
    let good = device.attach("good", "internal")?;
    let gateway: SocketAddr = "10.0.3.1:53".parse()?;
    // More connections than a client may have, each with half a question or nothing.
    let streams = bad.ns.run(|| {
        let mut streams = Vec::new();
        for n in 0..400 {
            let Ok(mut stream) = TcpStream::connect_timeout(&gateway, LONG) else { continue };
            if n % 2 == 0 {
                let _ = stream.write_all(&[0, 40, 1, 2, 3]);
            }
            streams.push(stream);
        }
        Ok(streams)
    })?;
    ensure!(streams.len() > 300, "{} connections", streams.len());
    // Questions that no server answers, as fast as possible, and invalid messages.
    let socket = bad.ns.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flood = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            for n in 0_u32.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let _ = socket.send_to(&question(1, &format!("never.{n}.example")), gateway);
                let _ = socket.send_to(&bytes("00010100000100000000000003"), gateway);
                std::thread::sleep(Duration::from_micros(100));
            }
        })
    };
    // The flood has reached its limits before another client asks, on any machine, and goes on until the end.
    eventually(SOON, || {
        let metrics = metrics(&device)?;
        for result in ["limited", "malformed"] {
            ensure!(metrics.contains(&format!("result=\"{result}\"")), "no {result} in {metrics}");
        }
        Ok(())
    })?;
    let mut took = good.ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(LONG))?;
        socket.connect(gateway)?;
        let mut took = Vec::new();
        for n in 0..300 {
            let begun = Instant::now();
            socket.send(&question(n, if n % 2 == 0 { "good.pv.local" } else { "long.example.net" }))?;
            let mut buffer = [0; 512];
            let len = socket.recv(&mut buffer)?;
            ensure!(buffer[..2] == n.to_be_bytes() && buffer[3] & 15 == 0, "{:?}", &buffer[..len]);
            took.push(begun.elapsed());
        }
        // Many questions in one connection, answered in any order.
        let mut stream = TcpStream::connect_timeout(&gateway, LONG)?;
        stream.set_read_timeout(Some(LONG))?;
        let asked: Vec<u8> = (0..40_u16)
            .flat_map(|n| {
                let question = question(n, "good.pv.local");
                [&(question.len() as u16).to_be_bytes()[..], &question].concat()
            })
            .collect();
        stream.write_all(&asked)?;
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 40 {
            let mut len = [0; 2];
            stream.read_exact(&mut len)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut answer)?;
            seen.insert([answer[0], answer[1]]);
        }
        Ok(took)
    });
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flood.join().expect("no panic");
    let took = took.as_mut().map_err(|e| anyhow::anyhow!("{e:#}: {}", device.log()))?;
    took.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!("answers to others: median {median:?}, worst {worst:?}");
    // A client that waited for the flood's questions would wait for seconds. The usual time of an answer is measured by
    // a benchmark.
    ensure!(median < harness::patience(Duration::from_millis(200)), "median {median:?}, worst {worst:?}");
    drop(streams);
    let status = fs::read_to_string(format!("/proc/{}/status", device.daemon()?.pid()))?;
    let rss = status.lines().find(|l| l.starts_with("VmRSS")).context("VmRSS")?;
    println!("{rss}");
    Ok(())
}
