"""Tables that grow from call to call, and what makes a recipe's runs invalid."""

import copy
import dataclasses
import json

import pytest

from benchmarks.finetune import recipes as book
from benchmarks.finetune.experiment import FINGERPRINTS, Run, Store
from benchmarks.finetune.fingerprint import fingerprint
from benchmarks.finetune.recipes import ENCODER, RECIPES, MaskRule
from benchmarks.finetune.results import merged


def entry(name, accuracies, date="2026-02-02"):
    """What a table says of a recipe, as far as merging looks at it."""
    return {
        "date": date,
        "fingerprint": FINGERPRINTS[name],
        "seeds": list(range(len(accuracies))),
        "accuracies": accuracies,
        "difference_to_full": None,
    }


def results(settings=150, **entries):
    """Results of one call, with a grid for each recipe."""
    return {
        "settings": {"steps": settings},
        "checkpoint": "default",
        "task": {"name": "task"},
        "learning_rate_grid": {
            "seed": 1000,
            "dev_accuracy": {key: {} for key in entries},
        },
        "recipes": entries,
    }


@pytest.fixture
def table(tmp_path):
    """A committed table of two recipes."""
    path = tmp_path / "results.json"
    old = results(
        full=entry("full", [0.5, 0.6], "2026-01-01"),
        head=entry("head", [0.4, 0.4], "2026-01-01"),
    )
    path.write_text(json.dumps(old))
    return path


def test_recipes_join_a_table_with_the_same_settings(table):
    found, notes = merged(table, results(lora=entry("lora", [0.6, 0.7])))
    assert not notes
    assert list(found["recipes"]) == ["full", "head", "lora"]
    assert list(found["learning_rate_grid"]["dev_accuracy"]) == ["full", "head", "lora"]
    dates = [e["date"] for e in found["recipes"].values()]
    assert dates == ["2026-01-01", "2026-01-01", "2026-02-02"]
    # The new entry is compared, seed by seed, with the old one.
    gap = found["recipes"]["lora"]["difference_to_full"]
    assert gap["mean"] == pytest.approx(0.1) and gap["verdict"] == "better"


def test_recipes_measured_again_take_their_old_place(table):
    found, _ = merged(table, results(full=entry("full", [0.7, 0.7])))
    assert list(found["recipes"]) == ["full", "head"]
    assert found["recipes"]["full"]["accuracies"] == [0.7, 0.7]
    assert found["recipes"]["head"]["difference_to_full"]["mean"] < -0.2


def test_an_early_tables_entry_keeps_its_difference(table):
    old = json.loads(table.read_text())
    gap = {"mean": -0.1, "standard_error": 0.02, "verdict": "worse"}
    old["recipes"]["full"]["accuracies"] = None
    old["recipes"]["head"] |= {"accuracies": None, "difference_to_full": gap}
    table.write_text(json.dumps(old))
    found, _ = merged(table, results(lora=entry("lora", [0.6, 0.7])))
    gaps = [e["difference_to_full"] for e in found["recipes"].values()]
    assert gaps == [None, gap, None]


def test_other_settings_replace_the_table_and_say_so(table):
    new = results(200, lora=entry("lora", [0.6, 0.7]))
    found, notes = merged(table, new)
    assert found == new
    assert notes == ["results of another call were replaced: steps"]


def test_a_changed_recipe_leaves_the_table(table):
    old = json.loads(table.read_text())
    old["recipes"]["head"]["fingerprint"] = "of another time"
    table.write_text(json.dumps(old))
    found, notes = merged(table, results(lora=entry("lora", [0.6, 0.7])))
    assert list(found["recipes"]) == ["full", "lora"]
    assert list(found["learning_rate_grid"]["dev_accuracy"]) == ["full", "lora"]
    assert notes == ["head has changed since 2026-01-01: its entry is gone"]


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_missing_or_broken_table_is_no_table(tmp_path, content):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    new = results(lora=entry("lora", [0.6]))
    assert merged(path, copy.deepcopy(new)) == (new, [])


def test_a_rank_is_part_of_the_recipe_that_uses_it_alone(monkeypatch):
    before = {name: fingerprint(recipe) for name, recipe in RECIPES.items()}
    assert before == FINGERPRINTS
    monkeypatch.setattr("benchmarks.finetune.adaptation.LORA_RANK", 4)
    after = {name: fingerprint(recipe) for name, recipe in RECIPES.items()}
    assert {name for name in RECIPES if after[name] != before[name]} == {"lora"}


@pytest.mark.parametrize(
    ("constant", "value", "changed"),
    [
        ("KEEP_FRACTION", 0.2, {"child_tuning_f", "update_dropout"}),
        ("WEIGHT_DECAY", 0.1, set(RECIPES)),  # by way of `adamw` or itself
        (
            "CLIP_NORM",
            2.0,
            set(RECIPES) - {"lion", "tiger", "lazy_tiger", "mixed_sign"},
        ),
    ],
)
def test_constants_are_followed_through_helpers(monkeypatch, constant, value, changed):
    monkeypatch.setattr(book, constant, value)
    found = {
        n for n, recipe in RECIPES.items() if fingerprint(recipe) != FINGERPRINTS[n]
    }
    assert found == changed


def test_rules_and_models_are_part_of_a_recipe():
    names = (
        "ladder",
        "ladder_pruned",
        "ladder_cached",
        "full",
        "child_tuning_d",
        "fish",
    )
    prints = [FINGERPRINTS[name] for name in names]
    assert len(set(prints)) == len(prints)
    rule = MaskRule(0.1, ENCODER)
    changed = dataclasses.replace(RECIPES["fish"], mask=rule)
    assert fingerprint(changed) != FINGERPRINTS["fish"]
    # A run says its own rate.
    rated = dataclasses.replace(RECIPES["fish"], learning_rate=1.0)
    assert fingerprint(rated) == FINGERPRINTS["fish"]


def test_a_stored_run_is_found_by_its_recipe_and_settings(tmp_path, monkeypatch):
    run = Run("lora", 1e-3, 0, 1)
    path = Store(tmp_path, {"steps": 2}).path(run)
    assert path == Store(tmp_path, {"steps": 2}).path(run)
    assert path != Store(tmp_path, {"steps": 3}).path(run)
    assert path != Store(tmp_path, {"steps": 2}).path(dataclasses.replace(run, seed=1))
    monkeypatch.setitem(FINGERPRINTS, "lora", "other")
    assert path != Store(tmp_path, {"steps": 2}).path(run)
