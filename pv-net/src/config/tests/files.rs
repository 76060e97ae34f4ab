//! The files of the repository: examples and schemas.

use super::*;
use std::path::Path;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member of the workspace")
}

#[test]
fn the_examples_are_valid() {
    let dir = repository().join("examples");
    let device = load::device(&dir.join("device.json"), Form::Own).expect("valid");
    let containers = load::containers(&dir.join("containers"), Form::Own).expect("readable");
    assert_eq!(containers.len(), 3);
    for declared in containers {
        let container = declared.container.expect("valid");
        assert_eq!(check_container("run.json", &container, &device), []);
        declared.offers.expect("valid");
    }
}

#[test]
fn the_schemas_are_current() {
    for (name, text) in raw::schemas() {
        let path = repository().join("schemas").join(name);
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &text).expect("written");
        }
        let on_disk = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(on_disk, text, "{name} is not what the types say: UPDATE_SCHEMAS=1 cargo test -p pv-net schemas");
    }
}
