//! Calls of the kernel's own functions, which the loader library does not know: put into the object before it is loaded.
//!
//! The compiler leaves a call of an undefined symbol with a relocation. Such a call gets the mark of a call of a kernel
//! function, and the number that this kernel gives the function in its BTF (the kernel's Documentation/bpf/kfuncs.rst).

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};

use super::btf::{Btf, BtfError};

/// Why the calls could not be put in.
#[derive(Debug, thiserror::Error)]
pub enum KfuncError {
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error(
        "this kernel has no function {function}; Linux 6.9 or later with CONFIG_SYN_COOKIES is needed (`uname -r` tells which this is)"
    )]
    Missing { function: String },
    #[error("the program's object is not what it should be")]
    Object(#[from] object::Error),
    #[error("the program's object has a call where none can be")]
    Malformed,
}

/// The object for the running kernel.
pub(super) fn for_this_kernel(object: &[u8]) -> Result<Vec<u8>, KfuncError> {
    let btf = Btf::of_kernel()?;
    patched(object, |function| btf.function(function))
}

fn patched(object: &[u8], id: impl Fn(&str) -> Option<u32>) -> Result<Vec<u8>, KfuncError> {
    let elf = object::File::parse(object)?;
    let mut bytes = object.to_vec();
    for section in elf.sections() {
        let Some((start, _)) = section.file_range() else {
            continue;
        };
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else {
                continue;
            };
            let symbol = elf.symbol_by_index(symbol)?;
            if !symbol.is_undefined() {
                continue;
            }
            let function = symbol.name()?;
            let id = id(function).ok_or_else(|| KfuncError::Missing {
                function: function.to_owned(),
            })?;
            let call = usize::try_from(start + offset)
                .ok()
                .and_then(|at| bytes.get_mut(at..at + INSTRUCTION_BYTES))
                .filter(|call| call[0] == CALL)
                .ok_or(KfuncError::Malformed)?;
            call[1] = KERNEL_FUNCTION << 4;
            // No module's: the kernel itself has it.
            call[2..4].fill(0);
            call[4..].copy_from_slice(&id.to_ne_bytes());
        }
    }
    Ok(bytes)
}

const INSTRUCTION_BYTES: usize = 8;
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, in the upper half of the byte that holds the registers.
const KERNEL_FUNCTION: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::BACKEND;

    #[test]
    fn calls_get_their_number_and_nothing_else_changes() {
        let mut patched = patched(BACKEND, |function| {
            assert_eq!(function, "bpf_sk_assign_tcp_reqsk");
            Some(0x0102_0304)
        })
        .unwrap();
        let mut calls = 0;
        for at in (0..BACKEND.len() - 8).step_by(8) {
            if patched[at..at + 8] == [0x85, 0x20, 0, 0, 4, 3, 2, 1] {
                patched[at + 1..at + 8].copy_from_slice(&BACKEND[at + 1..at + 8]);
                calls += 1;
            }
        }
        // One for each family.
        assert_eq!(calls, 2);
        assert!(patched == BACKEND);
    }

    #[test]
    fn a_kernel_without_the_function_is_told_from_one_that_has_it() {
        let error = patched(BACKEND, |_| None).unwrap_err().to_string();
        assert!(
            error.starts_with("this kernel has no function bpf_sk_assign_tcp_reqsk; Linux 6.9"),
            "{error}"
        );
    }
}
