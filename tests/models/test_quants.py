from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.models import quants
from locallab.models.quants import NoChoice, choose
from locallab.models.spec import shards, unsharded


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("qwen2.5-coder-7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Qwen3-4B-Instruct-2507-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Llama-3.2-1B-Instruct-IQ3_XXS.gguf", "IQ3_XXS"),
        ("model.Q8_0.gguf", "Q8_0"),
        ("model.fp16.gguf", "F16"),
        ("ggml-model-q4_0.gguf", "Q4_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("tiny-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("tiny-Q4_K_M-pure.gguf", "Q4_K_M"),
        ("BF16/tiny-00001-of-00002.gguf", "BF16"),
        ("tiny-Q6_K-00001-of-00002.gguf", "Q6_K"),
        ("Q4_K_M.gguf", "Q4_K_M"),
        ("tiny.gguf", ""),
        ("Qwen3-4B.gguf", ""),
        ("iq-test.gguf", ""),
    ],
)
def test_label(name: str, label: str) -> None:
    assert quants.label(name) == label


USUAL = ["t-Q2_K.gguf", "t-Q8_0.gguf", "t-Q4_0.gguf", "t-Q4_K_M.gguf", "t-F16.gguf", "mmproj-F16.gguf", "README.md"]
SPLIT = [f"t-Q8_0-0000{index}-of-00003.gguf" for index in (1, 2, 3)]


@pytest.mark.parametrize(
    ("names", "wanted", "files"),
    [
        (USUAL, None, ["t-Q4_K_M.gguf"]),
        (USUAL[:3], None, ["t-Q4_0.gguf"]),
        (USUAL[:2], None, ["t-Q8_0.gguf"]),
        (USUAL, "q8_0", ["t-Q8_0.gguf"]),
        (USUAL, "fp16", ["t-F16.gguf"]),
        (["whatever.gguf", "imatrix.gguf"], None, ["whatever.gguf"]),
        ([*USUAL, "t-UD-Q4_K_M.gguf"], "Q4_K_M", ["t-Q4_K_M.gguf"]),
        (["t-UD-Q4_K_M.gguf"], "Q4_K_M", ["t-UD-Q4_K_M.gguf"]),
        (["t-UD-Q4_K_M.gguf", "t-UD-Q8_0.gguf"], None, ["t-UD-Q4_K_M.gguf"]),
        ([*SPLIT[::-1], "t-Q2_K.gguf"], "Q8_0", SPLIT),
        ([*SPLIT, "t-Q8_0.gguf"], "Q8_0", ["t-Q8_0.gguf"]),
        (["old/t-Q8_0.gguf", "t-Q8_0.gguf"], "Q8_0", ["t-Q8_0.gguf"]),
    ],
)
def test_choose(names: list[str], wanted: str | None, files: list[str]) -> None:
    assert list(choose(names, wanted)) == files


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        (["README.md", "mmproj-F16.gguf"], None, "holds no complete .gguf model"),
        (SPLIT[:2], "Q8_0", "holds no complete .gguf model"),
        (USUAL, "Q5_K_M", "has no quantization Q5_K_M; it has F16, Q2_K, Q4_0, Q4_K_M, Q8_0"),
        ([*SPLIT[:2], "t-Q2_K.gguf"], "Q8_0", "has no quantization Q8_0; it has Q2_K"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", "has several files of Q8_0, name one: a-Q8_0.gguf, b-Q8_0.gguf"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], None, "has several files of Q8_0, name one: a-Q8_0.gguf, b-Q8_0.gguf"),
        (["a.gguf", "b.gguf"], None, "has several models, name one: a.gguf, b.gguf"),
        (["a-IQ1_S.gguf", "a-TQ1_0.gguf"], None, "has several models, name one: IQ1_S, TQ1_0"),
    ],
)
def test_what_cannot_be_chosen_is_named(names: list[str], wanted: str | None, message: str) -> None:
    with pytest.raises(NoChoice) as caught:
        choose(names, wanted)
    assert str(caught.value) == message


@given(st.lists(st.sampled_from([*USUAL, *SPLIT, "x/t-Q8_0.gguf", "t-UD-Q4_K_M.gguf"]), unique=True), st.randoms())
def test_the_choice_does_not_depend_on_the_order(names: list[str], random: object) -> None:
    """What is chosen is there, whole, and of one model."""

    def outcome(names: list[str]) -> object:
        try:
            return choose(names)
        except NoChoice as error:
            return str(error)

    shuffled = sorted(names, key=lambda _: random.random())  # type: ignore[attr-defined]
    chosen = outcome(names)
    assert outcome(shuffled) == chosen
    if isinstance(chosen, tuple):
        assert chosen == shards(chosen[0])
        assert set(chosen) <= set(names)


@given(st.text("ab-0123456789", min_size=1, max_size=12), st.integers(1, 40), st.data())
def test_any_file_of_a_split_model_leads_to_all(stem: str, count: int, data: st.DataObject) -> None:
    files = shards(f"{stem}-00001-of-{count:05}.gguf")
    assert len(set(files)) == count
    assert shards(data.draw(st.sampled_from(files))) == files
    assert {unsharded(file) for file in files} == {f"{stem}.gguf"}


@pytest.mark.parametrize("name", ["a.gguf", "a-1-of-2.gguf", "a-00001-of-00000.gguf", "a-00001-of-00002.bin"])
def test_what_is_not_split_stands_alone(name: str) -> None:
    assert shards(name) == (name,)
