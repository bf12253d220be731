"""Prompts become what diffusers' own pipeline makes of them, and a row's bytes are those of its prompt."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medlt.diffusion.prompts import Prompts
from medlt.diffusion.stable.text import TextConditioner, TokenConditioner
from medlt.types import InputError

NAN = float("nan")
FINDINGS = ("Cardiomegaly", "Pleural_Effusion", "Hernia")
LABELS = torch.tensor([[1.0, 1.0, 0.0], [NAN, NAN, NAN], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
ABOUT = [{"view": "PA"}, {}, {"view": "AP", "age": 93, "sex": "F"}, {"view": "PA"}]


def tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def encoder(words: int, seed: int = 0, **changes: Any) -> Any:
    """A CLIPTextModel of two small layers with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    settings: dict[str, Any] = {
        "vocab_size": words, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 77, "eos_token_id": words - 1,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CLIPTextConfig(**settings)
        for name, value in changes.items():
            setattr(config, name, value)
        model = CLIPTextModel(config).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def clip(clip_tokenizer_folder: Path) -> Any:
    return tokenizer(clip_tokenizer_folder)


def conditioner(clip: Any, findings: tuple[str, ...] = FINDINGS, **changes: Any) -> TextConditioner:
    return TextConditioner(clip, encoder(len(clip), **changes), Prompts(findings))


def pipeline(clip: Any, text_encoder: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    absent = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(**absent, tokenizer=clip, text_encoder=text_encoder, requires_safety_checker=False)


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_embeddings_are_those_of_the_stable_diffusion_pipeline(clip: Any, masked: bool) -> None:
    told = conditioner(clip, **({"use_attention_mask": True} if masked else {}))
    prompts = told.prompts(LABELS, ABOUT)
    expected, null = pipeline(clip, told.text_encoder).encode_prompt(prompts, torch.device("cpu"), 1, True)
    torch.testing.assert_close(told(LABELS, ABOUT), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(told.null, null[0], atol=1e-5, rtol=1e-5)
    assert (told.null - told(LABELS)[1]).abs().max() > 1e-2
    assert told(LABELS, ABOUT).shape == (4, 77, 16)


@torch.no_grad()
def test_token_ids_are_those_of_the_stable_diffusion_pipeline(clip: Any) -> None:
    told = TokenConditioner(clip, Prompts(FINDINGS))
    options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
    assert torch.equal(told(LABELS, ABOUT), clip(told.prompts(LABELS, ABOUT), **options).input_ids)
    assert torch.equal(told.null, clip("", **options).input_ids[0])
    assert told(LABELS[:0]).shape == (0, 77)


def test_a_tokenizer_that_pads_otherwise_is_followed(clip_tokenizer_folder: Path) -> None:
    other = tokenizer(clip_tokenizer_folder)
    other.pad_token = "!"  # as Stable Diffusion 2.x
    null = TokenConditioner(other, Prompts(FINDINGS)).null
    assert null.tolist() == [other.bos_token_id, other.eos_token_id, *[other.convert_tokens_to_ids("!")] * 75]


def test_bytes_depend_on_the_prompt_only(clip: Any) -> None:
    def rows(labels: Tensor, about: list[dict[str, Any]], threads: int) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return conditioner(clip)(labels, about)
        finally:
            torch.set_num_threads(before)

    whole = rows(LABELS, ABOUT, 1)
    assert torch.equal(whole, rows(LABELS.flip(0), ABOUT[::-1], 2).flip(0))
    assert torch.equal(whole[2:3], rows(LABELS[2:3], ABOUT[2:3], 2))


def test_each_prompt_is_encoded_once_also_by_many_threads(clip: Any) -> None:
    told, calls = conditioner(clip), list[Tensor]()
    told.text_encoder.register_forward_pre_hook(lambda _, given, named: calls.append(given[0]), with_kwargs=True)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: told(LABELS, ABOUT), range(16)))
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    assert [len(ids) for ids in calls] == [1, 1, 1]
    assert not answers[0].requires_grad


def test_the_cache_is_bounded_and_forgets_the_oldest(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medlt.diffusion.stable.text.KEPT", 2)
    told = conditioner(clip)
    first = told.embeddings(["chest", "edema", "nodule"])
    assert list(told._encoded) == ["edema", "nodule"]
    told.embeddings(["edema"])
    assert torch.equal(told.embeddings(["chest"])[0], first[0])
    assert list(told._encoded) == ["edema", "chest"]


def test_digests_name_prompts_tokenizer_and_weights(clip: Any, clip_tokenizer_folder: Path) -> None:
    def digests(words: Any, told: Prompts, text_encoder: Any) -> tuple[str, str]:
        return TokenConditioner(words, told).digest, TextConditioner(words, text_encoder, told).digest

    told, other = Prompts(FINDINGS), tokenizer(clip_tokenizer_folder)
    same = digests(clip, told, encoder(len(clip)))
    other(["chest"], padding="max_length", truncation=True)
    assert digests(other, Prompts(FINDINGS), encoder(len(clip))) == same
    assert digests(clip, Prompts(FINDINGS, age="years"), encoder(len(clip)))[0] != same[0]
    assert digests(clip, told, encoder(len(clip), seed=1))[1] != same[1]
    other.pad_token = "!"
    assert digests(other, told, encoder(len(clip)))[0] != same[0]


def test_a_prompt_too_long_says_how_long_and_what_to_do(clip: Any) -> None:
    findings, labels = tuple(f"Opacity_{i}" for i in range(20)), torch.ones(1, 20)
    with pytest.raises(InputError, match=r"a prompt has \d+ tokens, .* 77: .*shorten prompts.template"):
        conditioner(clip, findings)(labels)
    assert TokenConditioner(clip, Prompts(findings, most=3))(labels).shape == (1, 77)


def test_a_tokenizer_of_another_model_is_refused(clip: Any, clip_tokenizer_folder: Path) -> None:
    with pytest.raises(InputError, match="use both from the same model"):
        TextConditioner(clip, encoder(len(clip) - 10), Prompts(FINDINGS))
    endless = tokenizer(clip_tokenizer_folder)
    endless.model_max_length = int(1e30)
    with pytest.raises(InputError, match="model_max_length"):
        TokenConditioner(endless, Prompts(FINDINGS))


@pytest.mark.real_data
def test_the_real_tokenizer_reads_our_prompts(real_data: Path) -> None:
    real = tokenizer(real_data / "weights" / "clip_tokenizer")
    told = TextConditioner(real, encoder(len(real)), Prompts(FINDINGS))
    expected = pipeline(real, told.text_encoder).encode_prompt(
        told.prompts(LABELS, ABOUT), torch.device("cpu"), 1, False
    )[0]
    torch.testing.assert_close(told(LABELS, ABOUT), expected.detach(), atol=1e-5, rtol=1e-5)
    spoken = real.decode(told.tokens(LABELS, ABOUT)[0], skip_special_tokens=True)
    assert spoken.replace(" ,", ",") == "chest radiograph, pa view, with cardiomegaly and pleural effusion"
