//! systemd-resolved. Its package would change the machine's `/etc/resolv.conf`, so set-up only unpacks it.

use super::upstream::outside;
use super::*;
use std::path::{Path, PathBuf};

/// Where set-up has unpacked its package.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/unpacked/systemd-resolved");
/// Its stub.
const STUB: &str = "127.0.0.53";

/// The program. Since Debian 13 it is below `usr`.
fn program() -> Option<PathBuf> {
    let at = |dir: &str| Path::new(UNPACKED).join(dir).join("systemd/systemd-resolved");
    ["lib", "usr/lib"].iter().map(|dir| at(dir)).find(|program| program.exists())
}

/// Notes that a test is skipped where set-up cannot unpack the package.
fn is_missing(test: &str) -> bool {
    let is_missing = program().is_none();
    if is_missing {
        harness::skip(test, "systemd-resolved is not unpacked: cargo xtask setup does that with apt-get");
    }
    is_missing
}

/// Runs `line` in a namespace beside systemd-resolved, which has a bus and file systems of its own there, and this
/// `resolv.conf`. In the line, `begin` starts it once more, and `$resolvectl` is its program of this name.
fn beside(ns: &Namespace, dir: &Path, resolv_conf: &Path, line: &str) -> Result<String> {
    let dir_text = dir.display();
    let bus = format!(
        r#"<busconfig><type>system</type><listen>unix:path={dir_text}/bus</listen><auth>EXTERNAL</auth>
        <policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>
        <allow send_type="signal"/><allow receive_type="method_call"/><allow receive_type="method_return"/>
        <allow receive_type="error"/><allow receive_type="signal"/></policy></busconfig>"#
    );
    fs::write(dir.join("bus.conf"), bus)?;
    let script = format!(
        r#"
        exec 2>>{dir_text}/resolved.log
        export DBUS_SYSTEM_BUS_ADDRESS=unix:path={dir_text}/bus
        mkdir -p /run/systemd
        mount -t tmpfs none /run/systemd
        mkdir /run/systemd/resolve
        getent passwd systemd-resolve >&2 || {{
            (cat /etc/passwd; echo systemd-resolve:x:996:996::/:/usr/sbin/nologin) > {dir_text}/passwd
            (cat /etc/group; echo systemd-resolve:x:996:) > {dir_text}/group
            mount --bind {dir_text}/passwd /etc/passwd
            mount --bind {dir_text}/group /etc/group
        }}
        chown systemd-resolve: /run/systemd/resolve
        chmod 755 {dir_text}
        mount --bind {resolv_conf} /etc/resolv.conf
        resolvectl={UNPACKED}/usr/bin/resolvectl
        dbus-daemon --config-file={dir_text}/bus.conf --nofork --nopidfile >&2 & bus=$!
        trap 'kill $resolved $bus' EXIT
        until [ -S {dir_text}/bus ]; do sleep 0.05; done
        chmod 666 {dir_text}/bus
        begin() {{
            {resolved} >&2 & resolved=$!
            until $resolvectl status >&2; do sleep 0.1; done
        }}
        begin
        {line}
        "#,
        resolv_conf = resolv_conf.display(),
        resolved = program().context("not unpacked")?.display(),
    );
    let done = harness::output(ns.command("timeout").args(["100", "unshare", "-m", "sh", "-ec", &script]));
    done.with_context(|| fs::read_to_string(dir.join("resolved.log")).unwrap_or_default())
}

fn ask(words: &str) -> String {
    format!("dig @{STUB} +short +tries=2 +time=6 {words}; ")
}

#[test]
fn a_containers_resolved_asks_the_pools_server() -> Result<()> {
    if is_missing("a_containers_resolved_asks_the_pools_server") {
        return Ok(());
    }
    let lab = Lab::new(&two_pools())?;
    let [v4, v6] = own(&lab.db);
    let file = lab.device.file("run").join("resolv/web.conf");
    let asks = [ask("db.pv.local A"), ask("db.pv.local AAAA"), ask("nobody.pv.local A")].concat();
    let said = beside(&lab.web.ns, &lab.device.file(""), &file, &asks)?;
    ensure!(said.lines().collect::<Vec<_>>() == [&v4, &v6], "{said}");
    Ok(())
}

/// It asks pv-net for names of the device's domain alone, also after it has begun anew, and no more when that is off.
#[test]
fn the_devices_resolved_is_told_of_containers() -> Result<()> {
    if is_missing("the_devices_resolved_is_told_of_containers") {
        return Ok(());
    }
    let mut config = masqueraded();
    config["network"]["dns_on_device"] = json!(true);
    let (device, _host, server, web) = outside(&config)?;
    let [v4, v6] = own(&web);
    config["network"]["dns_on_device"] = json!(false);
    fs::write(device.file("off.json"), config.to_string())?;
    let command = device.command();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let reload: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let off = format!(
        "cp {} {}; {} reload >&2; while {}; do sleep 0.1; done; ",
        device.file("off.json").display(),
        device.config().display(),
        reload.join(" "),
        "$resolvectl domain pvbr3 | grep -q pv.local"
    );
    let told = "until $resolvectl domain pvbr3 | grep -q pv.local; do sleep 0.1; done; ";
    let again = "kill $resolved; wait $resolved || true; begin; ";
    let names = [ask("web.pv.local A"), ask("web.pv.local AAAA"), ask("long.example.net A")].concat();
    let line =
        [told, &names, again, told, &ask("web.pv.local A"), &off, &ask("n1.example.net A"), "echo over"].concat();
    let said = beside(&device.ns, &device.file(""), &device.file("resolv.conf"), &line);
    let said = said.with_context(|| device.log())?;
    let want = [v4.as_str(), &v6, "198.51.100.7", &v4, "198.51.100.7", "over"];
    ensure!(said.lines().collect::<Vec<_>>() == want, "{said}");
    ensure!(server.asked().iter().all(|asked| !asked.name.ends_with("pv.local")), "{:?}", server.asked());
    let conditions = device.json(&["status"])?["conditions"].clone();
    ensure!(conditions == json!([]), "{conditions}");
    Ok(())
}
