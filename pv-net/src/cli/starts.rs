//! `check`: whether containers that start automatically wait for each other in a circle.

use crate::config::ConfigError;
use crate::model::{Container, ContainerName, Offer, Start};
use crate::runtime::order::{self, Needs};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the checked files say of starts. A `services.json` is about the container whose `run.json` is beside it.
#[derive(Default)]
pub(super) struct Starts {
    containers: BTreeMap<PathBuf, (PathBuf, ContainerName, Vec<String>)>,
    offers: BTreeMap<PathBuf, Vec<String>>,
}

impl Starts {
    /// Notes a `run.json`.
    pub(super) fn requires(&mut self, file: &Path, container: &Container) {
        let startable = container.startable.as_ref().filter(|startable| startable.start == Start::Auto);
        if let (Some(startable), Some(dir)) = (startable, file.parent()) {
            let entry = (file.to_owned(), container.name.clone(), startable.requires.clone());
            self.containers.insert(dir.to_owned(), entry);
        }
    }

    /// Notes a `services.json`.
    pub(super) fn offers(&mut self, file: &Path, offers: Vec<Offer>) {
        if let Some(dir) = file.parent() {
            self.offers.insert(dir.to_owned(), offers.into_iter().map(|offer| offer.name).collect());
        }
    }

    /// The error for a circle, if there is one.
    pub(super) fn circle(self) -> Option<ConfigError> {
        let mut files = BTreeMap::new();
        let mut all = BTreeMap::new();
        for (dir, (file, name, requires)) in self.containers {
            let offers = self.offers.get(&dir).cloned().unwrap_or_default();
            files.insert(name.clone(), file);
            all.insert(name, Needs { requires, offers });
        }
        let circle = order::circle(&order::providers(&all))?;
        let file = files.get(circle.first()?)?;
        Some(ConfigError {
            file: file.display().to_string(),
            path: "services.required".to_owned(),
            value: None,
            why: format!("these containers wait for each other: {}", order::in_words(&circle)),
            help: Some("take one of the services out of \"required\", or start one of them with \"manual\"".to_owned()),
        })
    }
}
