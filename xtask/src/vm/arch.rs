//! Differences between the architectures that a guest can have.

use std::process::Command;

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Arch {
    /// 64-bit PC
    #[value(name = "x86_64")]
    X86,
    /// 64-bit ARM
    #[value(name = "aarch64")]
    Arm,
}

impl Arch {
    /// Its name for people, folders and rustc.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        }
    }

    /// Debian's name for it.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Arm => "arm64",
        }
    }

    /// rustc's target.
    pub const fn target(self) -> &'static str {
        match self {
            Self::X86 => "x86_64-unknown-linux-gnu",
            Self::Arm => "aarch64-unknown-linux-gnu",
        }
    }

    /// The emulator.
    pub const fn qemu(self) -> &'static str {
        match self {
            Self::X86 => "qemu-system-x86_64",
            Self::Arm => "qemu-system-aarch64",
        }
    }

    /// The kernel's name of the first serial line.
    pub const fn console(self) -> &'static str {
        match self {
            Self::X86 => "ttyS0",
            Self::Arm => "ttyAMA0",
        }
    }

    /// Kernels that are booted by default.
    pub const fn usual(self) -> &'static [&'static str] {
        match self {
            Self::X86 => &["5.10", "6.1", "6.12", "6.18", "7.3"],
            Self::Arm => &["6.1", "7.3"],
        }
    }

    /// The emulator with a machine of this architecture. Always emulated: KVM may exist and still refuse ordinary
    /// guests, and the measurements must not depend on the machine.
    pub fn machine(self) -> Command {
        let mut command = Command::new(crate::run::find(self.qemu()).unwrap_or_else(|| self.qemu().into()));
        match self {
            Self::X86 => command.args(["-M", "q35", "-vga", "none", "-cpu", "max"]),
            // The CPU `max` has pointer authentication, which takes most of the time when it is emulated.
            Self::Arm => command.args(["-M", "virt", "-cpu", "cortex-a72"]),
        };
        command.args(["-accel", "tcg,thread=multi", "-smp", "2", "-net", "none"]);
        command
    }
}
