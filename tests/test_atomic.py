"""Files are the old ones or the new ones."""

import errno
import os
import stat

import pytest

from jaxformer.atomic import atomic_write


def test_the_new_content_takes_the_place_at_the_end(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_reader_of_the_old_file_reads_the_old_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        with atomic_write(path) as file:
            file.write(b"new")
        assert reader.read() == b"old"


def test_an_interrupt_leaves_the_old_content_and_no_trace(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_the_file_is_readable_as_any_new_one(tmp_path):
    plain, replaced = tmp_path / "a", tmp_path / "b"
    plain.touch()
    with atomic_write(replaced):
        pass
    assert stat.S_IMODE(replaced.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_the_file_behind_a_link_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "a", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"
    assert link.is_symlink()


def test_a_pipe_is_not_made_a_file(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="Not a regular file") as caught, atomic_write(path):
        pass
    assert caught.value.filename == str(path)
    assert path.is_fifo()


def test_a_missing_directory_names_the_file(tmp_path):
    path = tmp_path / "absent" / "a"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(path):
        pass
    assert caught.value.filename == str(path)


def test_a_fault_of_another_file_in_the_block_is_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")
    assert os.listdir(tmp_path) == []


def test_a_fault_of_writing_names_the_file_and_keeps_its_message(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="flushed in vain") as caught, atomic_write(path):
        raise OSError("flushed in vain")
    assert caught.value.filename == str(path)
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught, atomic_write(path):
        pass
    assert caught.value.filename == str(path)
