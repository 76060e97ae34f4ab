//! The form of `device.json`, and in the module `run` that of `run.json`. Nothing is checked here. The JSON Schemas are
//! generated from these types, with their comments as descriptions.

use super::field::{Field, Section};
use crate::model::{HostAccess, PoolIpam, RaMode, RouterPreference, XdpChoice};
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, JsonSchema)]
        #[schemars(extend("additionalProperties" = false))]
        pub struct $name {
            $($(#[$fdoc])* pub $field: Option<Field<$type>>,)*
            /// Fields that are none.
            #[serde(flatten)]
            #[schemars(skip)]
            pub unknown: Map<String, Value>,
        }

        impl Section for $name {
            fn unknown(&self) -> &Map<String, Value> {
                &self.unknown
            }

            fn schema() -> &'static Schema {
                static SCHEMA: LazyLock<Schema> = LazyLock::new(|| schemars::schema_for!($name));
                &SCHEMA
            }
        }
    };
}

// Below the macro, which it uses too.
mod run;
mod services;

pub use run::{
    AutoRecovery, Escalation, HealthCheck, HealthType, Interface, Peer, RecoveryType, RequiredService, Run, RunNetwork,
    Runtime, Services, Sockets,
};
pub use services::{Manifest, Service};

section! {
    /// The device-wide configuration, `device.json`.
    Device {
        /// Pools, uplinks and policy.
        network: Network,
        /// Services that are reachable from outside by way of a proxy.
        ingress: Vec<Field<Ingress>>,
    }
}

section! {
    /// The device's network.
    Network {
        /// Who makes the interfaces: pv-net itself, or the CNI plugins in `cni_path`.
        backend: Backend,
        /// Directory of CNI plugins.
        cni_path: String,
        /// DNS domain of the containers; `pv.local` unless set.
        domain: String,
        /// Container names for the device's own programs, by a server on a loopback address: `true` is 127.0.0.153; false
        /// unless set.
        dns_on_device: OnDevice,
        /// Certificates of the authorities that vouch for servers with TLS, a PEM file; the system's unless set, such as
        /// `/etc/ssl/certs/ca-certificates.crt`.
        dns_ca_file: String,
        /// Links to the outside, the preferred one first; unless set, every Ethernet link that has a default route or
        /// an address beyond link-local ones, and is neither a port of another link nor a pool's bridge.
        uplinks: Vec<Field<String>>,
        /// Pools by name.
        pools: BTreeMap<String, Field<Pool>>,
        /// Rules between containers, pools and networks; a deny wins over every allow.
        policies: Vec<Field<Policy>>,
        /// Entries of the flow table, two a flow; 16384 unless set.
        flow_table: u32,
        /// Time-outs of idle flows.
        flow_timeouts: FlowTimeouts,
        /// What is dropped on the uplinks before the stack sees it; packets that claim a pool's source always are.
        /// Where `uplinks` is not set, it runs on those that have a default route.
        uplink_filter: UplinkFilter,
    }
}

section! {
    /// How long flows may be silent, in seconds, 1 to 604800.
    FlowTimeouts {
        /// TCP without an answer; 120 unless set.
        tcp_opening: u32,
        /// TCP, established; 7440 unless set.
        tcp: u32,
        /// TCP of which one side has sent FIN; 120 unless set.
        tcp_half_closed: u32,
        /// TCP of which both sides have sent FIN, or one RST; 120 unless set.
        tcp_closed: u32,
        /// UDP without an answer; 30 unless set.
        udp_opening: u32,
        /// UDP; 180 unless set.
        udp: u32,
        /// Echo and the like; 30 unless set.
        other: u32,
    }
}

section! {
    /// What is dropped on the uplinks before the stack sees it.
    UplinkFilter {
        /// Networks or addresses from which nothing is let in.
        deny: Vec<Field<String>>,
        /// Rate limit for each source address.
        rate_limit: RateLimit,
        /// Whether XDP drops it: `auto`, where the driver can; `generic`, in the stack; `off`. `auto` unless set.
        xdp: XdpChoice,
    }
}

section! {
    /// Rate limit for each source address.
    RateLimit {
        /// Packets a second, 1 to 100000000.
        packets_per_second: u32,
        /// Packets that may come at once, 1 to 1000000; as many as a second's unless set.
        burst: u32,
        /// Bits of an IPv6 address that tell two sources apart, 1 to 128; 64 unless set: who has one address of such a
        /// network has all of them.
        ipv6_prefix: u32,
    }
}

section! {
    /// A pool: a network on the device that containers get interfaces and addresses in.
    Pool {
        /// Kind of the pool's interfaces; `bridge` unless set.
        r#type: PoolType,
        /// Name of the pool's bridge; `pv-` and the pool's name unless set.
        bridge: String,
        /// What connects containers with the bridge: `veth`; `netkit` (Linux 6.12); `auto`, which is veth. `auto`
        /// unless set.
        link: LinkChoice,
        /// IPv4 network, such as `10.0.3.0/24`.
        subnet: String,
        /// The device's IPv4 address in the subnet; the first unless set.
        gateway: String,
        /// IPv6 network, such as `fd00:5056::/64`.
        subnet6: String,
        /// The device's IPv6 address in the subnet; the first unless set.
        gateway6: String,
        /// Masquerade packets that leave by an uplink.
        nat: bool,
        /// MTU of the pool's interfaces in bytes; the uplink's unless set.
        mtu: u32,
        /// TCP segments of up to 256 KiB on its interfaces, where the kernel has them; true unless set
        /// or `nat`: what leaves by an uplink is cut in software.
        big_tcp: bool,
        /// Whether the pool is closed to other pools; true unless set.
        isolated: bool,
        /// Whether a container that an OCI runtime starts may join the pool by an annotation (`pv-net.pool`, or
        /// `pv-net.name` for a declared one). Images may bring annotations along; false unless set.
        annotations: bool,
        /// What the pool's containers may reach on the device; `services` unless set.
        host_access: HostAccess,
        /// Flows that each of its containers may have in the flow table at once; 0, or unset: those that fill a quarter
        /// of it.
        max_flows: u32,
        /// DNS for its containers; `false`: none.
        dns: DnsChoice,
        /// DHCP on its bridge; none unless set.
        dhcp: Dhcp,
        /// Router advertisements for hosts on its bridge; none unless set.
        ra: Ra,
        /// DHCPv6 for hosts on its bridge, and for containers that ask by it; none unless set.
        dhcp6: Dhcp6,
        /// The link that macvlan and ipvlan interfaces sit on.
        parent: String,
        /// Macvlan: bridge, private, vepa, passthru; ipvlan: l2, l3, l3s. Passthru, l3 and l3s are not supported yet.
        mode: String,
        /// Who chooses the addresses of its containers: `host-local`, pv-net, from `subnet` and `subnet6`; `dhcp`, for
        /// macvlan, the parent's network: its DHCP server, and its router for IPv6. `host-local` unless set.
        ipam: PoolIpam,
    }
}

/// A server for the device's own programs: where it is, or whether there is one.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OnDevice {
    /// Whether there is one.
    Switch(bool),
    /// Its address, of loopback.
    Address(String),
}

/// DNS of a pool: its settings, or whether it has any.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum DnsChoice {
    /// Whether the gateway answers.
    Switch(bool),
    /// How it answers.
    Settings(Box<Field<Dns>>),
}

section! {
    /// DNS of a pool.
    Dns {
        /// Servers for names that are not the device's, such as `192.0.2.53`, or with TLS
        /// `tls://192.0.2.53#dns.example` and `tls://[2001:db8::53]:853#dns.example`; those of the device unless set.
        upstream: Vec<Field<String>>,
        /// Domains that have servers of their own, such as `{"corp.example": ["10.9.0.53"]}`.
        zones: BTreeMap<String, Field<Vec<Field<String>>>>,
        /// Domains whose names may have private addresses although outside servers say so; those in `zones` always may.
        private_names: Vec<Field<String>>,
    }
}

section! {
    /// DHCP of a pool: a container gets the address that it has anyway, any other client of the bridge one of the range.
    Dhcp {
        /// First and last address for clients that are not containers; without it they get none.
        range: Vec<Field<String>>,
        /// How long a lease lasts, such as `1h`, 10s to 365d; `1h` unless set.
        lease_time: String,
        /// Addresses of the range that clients behind one port of the bridge may have at once; half of it unless set,
        /// but no more than 1024.
        leases_per_port: u32,
        /// Addresses of time servers.
        ntp: Vec<Field<String>>,
        /// Routes beside the one to the gateway, each with its next hop, such as `{"10.9.0.0/16": "10.0.3.5"}`.
        routes: BTreeMap<String, Field<String>>,
        /// Address of the API of a captive portal (RFC 8910), such as `https://portal.example/api`.
        captive_portal: String,
        /// More options by their number, for clients that ask for them: text, `hex:` and hexadecimal digits, or a list of
        /// IPv4 addresses.
        options: BTreeMap<String, Field<DhcpOption>>,
    }
}

/// What an option of DHCP says.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum DhcpOption {
    /// Text; or `hex:` and hexadecimal digits, two an octet.
    Text(String),
    /// IPv4 addresses.
    Addresses(Vec<String>),
}

section! {
    /// Router advertisements of a pool with `subnet6`.
    Ra {
        /// What hosts are told about their addresses: `slaac`, they make some of `subnet6`; `stateless`, the same, and the
        /// rest is to be had by DHCPv6; `stateful`, addresses are to be had by DHCPv6; `route-only`, they have some.
        /// `slaac` unless set.
        mode: RaMode,
        /// How long the device is their way out without another advertisement, `12s` to `150m`; `30m` unless set. There
        /// are three or more in that time.
        lifetime: String,
        /// Which router they prefer, where the link has others: `low`, `medium`, `high`; `medium` unless set.
        preference: RouterPreference,
        /// Networks that they reach by the device even while it is not their way out, such as `fd00:5057::/48`.
        routes: Vec<Field<String>>,
    }
}

section! {
    /// DHCPv6 of a pool with `subnet6`.
    Dhcp6 {
        /// First and last address for hosts that are no containers; without it they get none, and are only told the
        /// servers.
        range: Vec<Field<String>>,
        /// How long a lease lasts, `10s` to `365d`; `1h` unless set.
        lease_time: String,
        /// Addresses of the range that hosts behind one port of the bridge may have at once; half of it unless set, but no
        /// more than 1024.
        leases_per_port: u32,
        /// Time servers that clients are told of.
        ntp: Vec<Field<String>>,
    }
}

section! {
    /// A rule.
    Policy {
        /// Name of the rule, shown where the rule decides.
        name: String,
        /// Who sends.
        from: Selector,
        /// Who receives.
        to: Selector,
        /// Ports such as `tcp/5432` or `udp/5000-5010`; all traffic unless set.
        ports: Vec<Field<String>>,
        /// Whether matching flows are allowed or denied.
        action: Action,
    }
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Selector {
    /// A container by name.
    Container(String),
    /// All containers of a pool.
    Pool(String),
    /// A network.
    Cidr(String),
    /// The device itself.
    #[serde(untagged)]
    Word(SelectorWord),
}

/// Selectors without an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SelectorWord {
    /// The device itself.
    Host,
    /// Everything outside.
    World,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Let pass.
    Allow,
    /// Refuse.
    Deny,
}

section! {
    /// A service that is reachable from outside.
    Ingress {
        /// Its name.
        name: String,
        /// The protocol.
        r#type: IngressType,
        /// `ADDRESS:PORT`, for HTTP followed by a path.
        external: String,
        /// The container that provides the service.
        provider: String,
        /// The provider's service.
        service: String,
    }
}

/// What an ingress speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IngressType {
    /// HTTP.
    Http,
    /// Any TCP.
    Tcp,
}

/// Who makes the interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// pv-net.
    Native,
    /// CNI plugins.
    Cni,
}

/// What a pool's interfaces are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PoolType {
    /// A bridge with veth or netkit pairs.
    Bridge,
    /// Macvlan interfaces on a parent.
    Macvlan,
    /// Ipvlan interfaces on a parent.
    Ipvlan,
}

/// What connects containers with a pool's bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkChoice {
    /// What pv-net takes for the best: veth.
    #[default]
    Auto,
    /// Veth pairs.
    Veth,
    /// Netkit pairs.
    Netkit,
}

/// The JSON Schemas, with the names of their files.
#[must_use]
pub fn schemas() -> [(&'static str, String); 3] {
    let text = |schema: schemars::Schema| format!("{schema:#}\n", schema = schema.as_value());
    [
        ("device.schema.json", text(schemars::schema_for!(Device))),
        ("run.schema.json", text(schemars::schema_for!(Run))),
        ("services.schema.json", text(schemars::schema_for!(Manifest))),
    ]
}
