import shutil
import subprocess
import sys

import pytest

from tests.support.samples import contents
from tumorseg.core.errors import InputError
from tumorseg.data import dataset
from tumorseg.importers import use as module
from tumorseg.importers.use import download_from_kaggle, use


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with DVC, its cache inside."""
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.chdir(root)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    return root


def test_use_copies_records_and_can_go_back(repository, phantom, coco_folder) -> None:
    assert use(phantom).images == 22
    assert contents(repository / "data") == contents(phantom)
    first = (repository / "data.dvc").read_text()
    other = coco_folder.write()
    assert use(other).images == 2
    assert contents(repository / "data") == contents(other)
    (repository / "data.dvc").write_text(first)
    dataset.dvc("checkout", "--quiet")
    assert contents(repository / "data") == contents(phantom)
    assert not list(repository.glob(".data.*"))


def test_unrecorded_data_are_never_lost(repository, phantom, coco_folder) -> None:
    shutil.copytree(phantom, repository / "data")
    with pytest.raises(InputError, match="not recorded"):
        use(coco_folder.write())
    shutil.rmtree(repository / "data")
    use(phantom)
    (repository / "data" / "train" / "mine.jpg").write_bytes(b"precious")
    before = contents(repository / "data")
    with pytest.raises(InputError, match="dvc add data"):
        use(coco_folder.write())
    assert contents(repository / "data") == before


def test_what_fails_leaves_the_old_data(repository, phantom, coco_folder, monkeypatch, tmp_path):
    use(phantom)
    (tmp_path / "images" / "train").mkdir(parents=True)
    for folder in (tmp_path / "images", tmp_path / "nowhere", repository / "data"):
        with pytest.raises(InputError, match=folder.name):
            use(folder)
    real = dataset.dvc

    def failing(*arguments: str) -> str:
        if arguments[0] == "add":
            raise InputError("dvc add: disk full")
        return real(*arguments)

    monkeypatch.setattr(module, "dvc", failing)
    with pytest.raises(InputError, match="disk full"):
        use(coco_folder.write())
    assert contents(repository / "data") == contents(phantom)


def test_a_failed_download_from_kaggle_says_what_to_do(monkeypatch) -> None:
    import kagglehub
    from kagglehub.exceptions import UnauthenticatedError

    def refuse(handle: str) -> str:
        raise UnauthenticatedError()

    monkeypatch.setattr(kagglehub, "dataset_download", refuse)
    with pytest.raises(InputError, match=r"KAGGLE_USERNAME.*tumorseg data use FOLDER"):
        download_from_kaggle()


def test_data_that_were_never_pushed_come_from_dvcs_own_remote(
    repository, phantom, monkeypatch, tmp_path, capsys
) -> None:
    use(phantom)
    for name, more in (("own", ["--default"]), ("server", [])):
        dataset.dvc("remote", "add", "--quiet", *more, name, str(tmp_path / name))
    dataset.push()
    monkeypatch.setenv(dataset.REMOTE, "server")
    kept = contents(repository / "data")
    for pushed in (False, True):
        if pushed:
            dataset.push()
            shutil.rmtree(tmp_path / "own")
        shutil.rmtree(repository / "data")
        shutil.rmtree(repository / ".dvc" / "cache")
        dataset.pull()
        assert contents(repository / "data") == kept
        assert ("remote server did not give" in capsys.readouterr().out) != pushed
