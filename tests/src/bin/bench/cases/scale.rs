//! How the number of containers on a device changes the speed between two of them.

use crate::case::{Candidate, Case, Metric};
use crate::options::Options;
use crate::wire::Wire;
use crate::{interrupt, pvnet};
use anyhow::{Context, Result};
use harness::{Device, Namespace, configs, unix_http};
use serde_json::{Value, json};

/// The case.
pub struct Scale;

impl Case for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn about(&self) -> &'static str {
        "between two containers of one pool, by the number of containers"
    }

    fn needs(&self) -> &'static [&'static str] {
        &[]
    }

    fn paths(&self, options: &Options) -> Vec<Candidate> {
        let counts = if options.small { vec![2, 10] } else { vec![2, 100, 1000] };
        counts.into_iter().map(|n| Candidate::new(format!("pv-net, {n} containers"), move || pv_net(n))).collect()
    }

    fn metrics(&self, options: &Options) -> Vec<Metric> {
        options.traffic(&["rr-same", "crr-same", "stream4-split", "udp-same"])
    }
}

/// One pool with room for more containers than a bridge has ports.
pub fn wide_pool() -> Value {
    let mut pool = configs::pool(3);
    pool["subnet"] = json!("10.3.0.0/16");
    pool["gateway"] = json!("10.3.0.1");
    json!({"network": {"pools": {"internal": pool}}})
}

/// Attaches `n` containers that send nothing, the one of number `i` by an interface `e{i}`.
pub fn crowd(device: &Device, n: usize) -> Result<Vec<Namespace>> {
    let mut crowd = Vec::new();
    let socket = device.file("run").join("api.sock");
    for i in 0..n {
        interrupt::check()?;
        let (name, ns) = (format!("crowd-{i}"), Namespace::new("crowd")?);
        let interfaces = json!([{"name": format!("e{i}"), "pool": "internal", "default_route": false}]);
        let run = json!({"#spec": "service-manifest-run@1", "name": name, "type": "netns",
                         "network": {"interfaces": interfaces}});
        let body = json!({"run": run, "netns": ns.path()}).to_string();
        unix_http::ask(&socket, "PUT", &format!("/containers/{name}"), &body).with_context(|| name.clone())?;
        crowd.push(ns);
    }
    Ok(crowd)
}

fn pv_net(n: usize) -> Result<Wire> {
    let device = Device::started(&wide_pool())?;
    let (client, server) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let crowd = crowd(&device, n - 2)?;
    let listed = device.json(&["containers"])?.as_array().map_or(0, Vec::len);
    anyhow::ensure!(listed == n, "{listed} containers, not {n}");
    let mut wire = pvnet::wire(&device, &(&client).into(), &(&server).into());
    wire.keep = Box::new((client, server, crowd, device));
    Ok(wire)
}
