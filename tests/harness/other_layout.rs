//! Changes pins so that they look like those of a build with another map layout. The programs on the links go on with
//! the maps that they have.

use crate::{Device, output};
use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData, MapInfo, MapType};
use pv_net_common::{GlobalConfig, names};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The path of a map's pin.
#[must_use]
pub fn pin_of(device: &Device, map: &str) -> PathBuf {
    device.pins().join("maps").join(map)
}

/// Replaces a pinned map by an empty one of the same kind, whose values are `more` bytes longer.
///
/// # Errors
/// When `bpftool` cannot make the map, or the pin cannot be replaced.
pub fn grow(device: &Device, map: &str, more: u32) -> Result<()> {
    let pin = pin_of(device, map);
    let info = MapInfo::from_pin(&pin).with_context(|| pin.display().to_string())?;
    let kind = match info.map_type()? {
        MapType::Array => "array",
        MapType::Hash => "hash",
        MapType::LruHash => "lru_hash",
        MapType::LpmTrie => "lpm_trie",
        MapType::PerCpuArray => "percpu_array",
        other => anyhow::bail!("{map} is {other:?}"),
    };
    fs::remove_file(&pin)?;
    let mut command = Command::new("bpftool");
    command.args(["map", "create"]).arg(&pin).args(["type", kind, "name", map]);
    let sizes = [("key", info.key_size()), ("value", info.value_size() + more), ("entries", info.max_entries())];
    for (what, number) in sizes.into_iter().chain([("flags", info.map_flags())]) {
        command.args([what, &number.to_string()]);
    }
    output(&mut command).map(drop)
}

/// Replaces the pinned `config` map by one that names layout `abi` and has the same values otherwise. It is a new map,
/// as between two builds.
///
/// # Errors
/// When the map cannot be made or written.
pub fn say_layout(device: &Device, abi: u32) -> Result<()> {
    let pin = pin_of(device, names::MAP_CONFIG);
    let said = config(device)?.get(&0, 0)?;
    grow(device, names::MAP_CONFIG, 0)?;
    config(device)?.set(0, GlobalConfig { abi, ..said }, 0).with_context(|| pin.display().to_string())
}

fn config(device: &Device) -> Result<Array<MapData, GlobalConfig>> {
    let data = MapData::from_pin(pin_of(device, names::MAP_CONFIG))?;
    Ok(Array::try_from(Map::from_map_data(data)?)?)
}
