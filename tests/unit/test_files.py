"""Folders of read-only files."""

from tumorseg.core import files


def test_a_read_only_folder_is_removed(tmp_path, monkeypatch) -> None:
    deep = tmp_path / "dvd" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "x.png").write_bytes(b"x")
    for path in (deep, deep.parent, deep.parent.parent):
        path.chmod(0o500)
    real = files.shutil.rmtree

    def as_for_others(folder):  # root may remove it
        if any(p.is_dir() and not p.stat().st_mode & 0o200 for p in (folder, *folder.rglob("*"))):
            raise PermissionError
        real(folder)

    monkeypatch.setattr(files.shutil, "rmtree", as_for_others)
    files.remove_folder(tmp_path / "dvd")
    assert not (tmp_path / "dvd").exists()
    files.remove_folder(tmp_path / "dvd")
