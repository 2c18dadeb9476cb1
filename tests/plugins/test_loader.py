"""What the loader promises without a GPU: it names what is missing, and its structs are C's."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from plugins import abi, loader

INCLUDE = Path(loader.__file__).parent / "include"


def test_a_missing_library_is_named_with_the_command_that_builds_it(tmp_path: Path) -> None:
    """Asking for the kernels without having built them says which file and how to build it."""
    missing = tmp_path / "libmtgr_ops.so"
    with pytest.raises(loader.LibraryError) as error:
        loader.register(missing)
    assert str(missing) in str(error.value)
    assert loader.BUILD_COMMAND in str(error.value)


def compile_c(source: str, target: Path, *flags: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NOT CHECKED: no C compiler")
    text = target.with_suffix(".c")
    text.write_text(source)
    command = [compiler, "-Wall", "-Werror", f"-I{INCLUDE}", *flags, str(text), "-o", str(target)]
    subprocess.run(command, check=True)


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    """A library built from another header is an error, not a crash at its first launch."""
    library = tmp_path / "libmtgr_ops.so"
    source = """
        int mtgr_abi_version(void) { return 999; }
        const char* mtgr_last_error(void) { return ""; }
    """
    compile_c(source, library, "-shared", "-fPIC")
    with pytest.raises(loader.LibraryError, match="ABI version 999"):
        loader.register(library)


def test_the_structs_are_those_of_the_header(tmp_path: Path) -> None:
    """Every field of the ctypes structs lies where C puts it, and the version agrees."""
    structs = {
        "mtgr_rows": abi.Rows,
        "mtgr_attention_args": abi.AttentionArgs,
        "mtgr_attention_memory": abi.AttentionMemory,
        "mtgr_norm_args": abi.NormArgs,
        "mtgr_linear_args": abi.LinearArgs,
        "mtgr_source": abi.Source,
        "mtgr_table": abi.Table,
        "mtgr_number": abi.Number,
        "mtgr_vector": abi.Vector,
        "mtgr_features": abi.Features,
        "mtgr_frame": abi.Frame,
        "mtgr_scores_args": abi.ScoresArgs,
        "mtgr_packed_array": abi.PackedArray,
        "mtgr_packed": abi.Packed,
    }
    lines = ['printf("%d\\n", MTGR_ABI_VERSION);']
    expected = [abi.ABI_VERSION]
    for name, struct in structs.items():
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        expected.append(ctypes.sizeof(struct))
        for field in struct._fields_:
            lines.append(f'printf("%zu\\n", offsetof({name}, {field[0]}));')
            expected.append(getattr(struct, field[0]).offset)
    program = tmp_path / "layout"
    includes = "".join(f"#include <{name}.h>\n" for name in ("stddef", "stdio", "mtgr_ops"))
    compile_c(f"{includes}int main(void) {{{' '.join(lines)}}}", program)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in output.split()] == expected
