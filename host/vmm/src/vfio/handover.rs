//! A device's driver: from the host's own to vfio-pci, and back.
//!
//! Source: Linux, Documentation/ABI/testing/sysfs-bus-pci (driver_override, drivers_probe,
//! driver/unbind). Whose device it was is the operator's to know: nothing here asks twice.

use std::fs;
use std::path::Path;

use super::{VfioRefusal, link};

const BUS: &str = "/sys/bus/pci";
const VFIO: &str = "vfio-pci";

/// Takes a device from its driver and binds it to vfio-pci.
pub fn give(address: &str) -> Result<(), VfioRefusal> {
    give_on(Path::new(BUS), address)
}

/// Takes a device from vfio-pci and lets the host's own driver have it again; says which one
/// took it, if any did.
pub fn give_back(address: &str) -> Result<String, VfioRefusal> {
    give_back_on(Path::new(BUS), address)
}

fn give_on(bus: &Path, address: &str) -> Result<(), VfioRefusal> {
    rebind(bus, address, VFIO)?;
    match link(&bus.join("devices").join(address).join("driver")) {
        driver if driver == VFIO => Ok(()),
        // The module is not loaded, or the kernel keeps the device to itself.
        driver => Err(refuse(address, "driver after the handover", "vfio-pci", driver)),
    }
}

fn give_back_on(bus: &Path, address: &str) -> Result<String, VfioRefusal> {
    // An empty line takes the override away.
    rebind(bus, address, "\n")?;
    match link(&bus.join("devices").join(address).join("driver")) {
        driver if driver == VFIO => Err(refuse(address, "driver", "another one", driver)),
        driver => Ok(driver),
    }
}

fn rebind(bus: &Path, address: &str, driver: &str) -> Result<(), VfioRefusal> {
    let device = bus.join("devices").join(address);
    let plain = address.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
    if !plain || !device.join("driver_override").exists() {
        let actual = address.to_owned();
        return Err(refuse(address, "PCI address", "one below /sys/bus/pci/devices", actual));
    }
    let write = |file: &Path, text: &str| {
        fs::write(file, text).map_err(|source| VfioRefusal::Sysfs {
            address: address.to_owned(),
            file: file.display().to_string(),
            source,
        })
    };
    write(&device.join("driver_override"), driver)?;
    let unbind = device.join("driver/unbind");
    if unbind.exists() {
        write(&unbind, address)?;
    }
    write(&bus.join("drivers_probe"), address)
}

fn refuse(
    address: &str,
    field: &'static str,
    expected: &'static str,
    actual: String,
) -> VfioRefusal {
    VfioRefusal::Device { address: address.to_owned(), field, expected, actual }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "0000:00:02.0";

    #[test]
    fn what_the_kernel_does_not_do_is_named() {
        let bus = tempfile::tempdir().unwrap();
        let device = bus.path().join("devices").join(ADDRESS);
        fs::create_dir_all(&device).unwrap();
        fs::write(bus.path().join("drivers_probe"), "").unwrap();
        for bad in ["../../x", "0000:00:03.0", ""] {
            let error = give_on(bus.path(), bad).unwrap_err().to_string();
            assert!(error.contains("PCI address"), "{error}");
        }
        fs::write(device.join("driver_override"), "").unwrap();
        // These files do what files do: no driver comes.
        let error = give_on(bus.path(), ADDRESS).unwrap_err().to_string();
        assert!(error.contains("expected vfio-pci"), "{error}");
        assert_eq!(fs::read_to_string(device.join("driver_override")).unwrap(), VFIO);
        assert_eq!(fs::read_to_string(bus.path().join("drivers_probe")).unwrap(), ADDRESS);
        assert_eq!(give_back_on(bus.path(), ADDRESS).unwrap(), "");
        assert_eq!(fs::read_to_string(device.join("driver_override")).unwrap(), "\n");
    }
}
