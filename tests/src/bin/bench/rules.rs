//! Rule sets as other programs write them, for the paths that compare with these programs.

use crate::nets;
use std::net::Ipv4Addr;

/// Docker's rule set (28, bridge `docker0`) for containers with a published port: address and protocol of each.
pub fn docker(published: &[(&str, &str)]) -> String {
    let (port, to) = (nets::PUBLISHED, nets::PORT);
    let filter = |(ip, proto): &(&str, &str)| {
        format!("-A DOCKER -d {ip}/32 ! -i docker0 -o docker0 -p {proto} -m {proto} --dport {to} -j ACCEPT\n")
    };
    let hairpin = |(ip, proto): &(&str, &str)| {
        format!("-A POSTROUTING -s {ip}/32 -d {ip}/32 -p {proto} -m {proto} --dport {to} -j MASQUERADE\n")
    };
    let nat = |(ip, proto): &(&str, &str)| {
        format!("-A DOCKER ! -i docker0 -p {proto} -m {proto} --dport {port} -j DNAT --to-destination {ip}:{to}\n")
    };
    format!(
        "*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
{}-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 10.0.3.0/24 ! -o docker0 -j MASQUERADE
{}-A DOCKER -i docker0 -j RETURN
{}COMMIT
",
        published.iter().map(filter).collect::<String>(),
        published.iter().map(hairpin).collect::<String>(),
        published.iter().map(nat).collect::<String>(),
    )
}

/// netavark's rule set (1.10, its nftables driver) for one network, and for one container in it whose port is
/// published. The table has the name that the witnesses read, and counters where they look.
pub fn netavark(published: Option<Ipv4Addr>) -> String {
    let (port, to) = (nets::PUBLISHED, nets::PORT);
    let each = |rule: &dyn Fn(&str) -> String| match published {
        Some(_) => ["tcp", "udp"].map(rule).join("\n        "),
        None => String::new(),
    };
    let hostport = each(&|proto| format!("{proto} dport {port} jump network-dnat"));
    let dnat = each(&|proto| {
        let address = published.unwrap_or(Ipv4Addr::UNSPECIFIED);
        format!(
            "ip saddr 10.0.3.0/24 {proto} dport {port} jump setmark
        ip saddr 127.0.0.1 {proto} dport {port} jump setmark
        {proto} dport {port} counter dnat ip to {address}:{to}"
        )
    });
    format!(
        "table inet bench {{
    chain setmark {{ meta mark set meta mark or 0x00002000
    }}
    chain network-dnat {{
        {dnat}
    }}
    chain hostport-dnat {{
        {hostport}
    }}
    chain input {{ type filter hook input priority filter; policy accept;
        ip saddr 10.0.3.0/24 meta l4proto {{ tcp, udp }} th dport 53 accept
    }}
    chain isolation-2 {{ }}
    chain isolation-3 {{ oifname \"docker0\" drop; jump isolation-2
    }}
    chain isolation-1 {{ }}
    chain forward {{ type filter hook forward priority filter; policy accept;
        ct state invalid drop
        jump isolation-1
        ip daddr 10.0.3.0/24 ct state established,related counter accept
        ip saddr 10.0.3.0/24 counter accept
    }}
    chain network {{ ip daddr 10.0.3.0/24 accept
        ip daddr != 224.0.0.0/4 counter masquerade
    }}
    chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
        meta mark & 0x00002000 == 0x00002000 masquerade
        ip saddr 10.0.3.0/24 jump network
    }}
    chain prerouting {{ type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump hostport-dnat
    }}
    chain output {{ type nat hook output priority -100; policy accept;
        fib daddr type local jump hostport-dnat
    }}
}}"
    )
}
