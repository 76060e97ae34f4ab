//! Other libraries and programs that ask for names.

use super::*;

/// A program that prints the addresses of a name, as the C library finds them.
const GETADDRINFO: &str = r#"
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <arpa/inet.h>
#include <netinet/in.h>

int main(int argc, char **argv) {
    struct addrinfo hints, *all, *one;
    char text[64];
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    int wrong = getaddrinfo(argv[1], NULL, &hints, &all);
    if (wrong) {
        puts(gai_strerror(wrong));
        return 1;
    }
    for (one = all; one; one = one->ai_next) {
        void *address = one->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
                                                  : (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
        puts(inet_ntop(one->ai_family, address, text, sizeof text));
    }
    return 0;
}
"#;

/// podman is written in Go, and asks for a registry's address as any program in Go does.
#[test]
fn gos_resolver_finds_names() -> Result<()> {
    let lab = Lab::new(&two_pools())?;
    let (file, store) = (lab.device.file("run").join("resolv/web.conf"), lab.device.file("store"));
    let pull = |name: &str| -> Result<String> {
        let line = format!(
            "mount --bind {} /etc/resolv.conf && exec podman --root {store} --runroot {store} --storage-driver vfs \
             --cgroup-manager cgroupfs pull --tls-verify=false docker://{name}:5000/image",
            file.display(),
            store = store.display(),
        );
        let mut command = lab.web.ns.command("unshare");
        command.args(["-m", "sh", "-c", &line]).env("GODEBUG", "netdns=go+2");
        let out = command.output()?;
        ensure!(!out.status.success(), "there is no registry at {name}");
        Ok(String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let own = own(&lab.db);
    for name in ["db", "db.pv.local", "sql"] {
        let said = pull(name)?;
        let is_one = |address: &String| said.contains(&format!("{address}:5000: connect: connection refused"));
        ensure!(said.contains("= dns") || said.contains("= files,dns"), "not Go's own resolver: {said}");
        ensure!(own.iter().any(|a| is_one(a) || is_one(&format!("[{a}]"))), "{name}: {said}");
    }
    for name in ["nobody.pv.local", "other.pv.local"] {
        let said = pull(name)?;
        ensure!(said.contains("no such host"), "{name}: {said}");
    }
    // It connects to one address; that it was told both is in the counters, since nobody else asks here.
    let counters = metrics(&lab.device)?;
    for kind in ["A", "AAAA"] {
        let counter = format!("pv_net_dns_queries_total{{type=\"{kind}\",result=\"own\"}} ");
        let count = counters.lines().find_map(|line| line.strip_prefix(&counter)).unwrap_or("0");
        ensure!(count.parse::<u32>()? >= 3, "{kind}: {count}");
    }
    Ok(())
}

#[test]
fn musl_finds_names() -> Result<()> {
    let lab = Lab::new(&two_pools())?;
    let (source, program) = (lab.device.file("names.c"), lab.device.file("names"));
    fs::write(&source, GETADDRINFO)?;
    harness::output(std::process::Command::new("musl-gcc").arg("-static").arg("-o").args([&program, &source]))?;
    let file = lab.device.file("run").join("resolv/web.conf");
    let find = |name: &str| {
        let line = format!("mount --bind {} /etc/resolv.conf && exec {} {name}", file.display(), program.display());
        harness::output(lab.web.ns.command("unshare").args(["-m", "sh", "-c", &line]))
    };
    let [v4, v6] = own(&lab.db);
    // It searches the domain for names without a dot only.
    for name in ["db", "db.pv.local", "db.internal.pv.local", "sql", "cache.x.pv.local"] {
        let found = find(name)?;
        let found: std::collections::BTreeSet<&str> = found.lines().collect();
        ensure!(found == [v4.as_str(), v6.as_str()].into(), "{name}: {found:?}");
    }
    for name in ["nobody", "nobody.pv.local", "other.pv.local"] {
        let said = find(name).expect_err("nobody has the name").to_string();
        ensure!(said.contains("Name does not resolve"), "{name}: {said}");
    }
    Ok(())
}
