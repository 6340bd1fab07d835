"""Formulas at a point: different values tell formulas apart, soundly."""

import cmath

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.rewards import formulas

LEAVES = st.sampled_from(["1", "2", "3", "x", "y", "5", r"\pi"])
FORMULAS = st.recursive(
  LEAVES,
  lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from("+-*"), inner).map(
      lambda p: f"({p[0]} {p[1]} {p[2]})"
    ),
    st.tuples(inner, inner).map(lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
    inner.map(lambda p: f"({p})^2"),
    inner.map(lambda p: f"-{p}"),
  ),
  max_leaves=6,
)


def in_python(text: str) -> sympy.Expr:
  import re

  while r"\frac" in text:
    text = re.sub(
      r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text, count=1
    )
  return sympy.sympify(text.replace(r"\pi", "pi").replace("^", "**"))


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("2+3*4", 14),
    ("2-3-4", -5),
    ("12/3/2", 2),
    ("-2^2", -4),
    ("(-2)^2", 4),
    ("2^{-1}", 0.5),
    (r"\frac{1}{2}3", 1.5),
    (r"2\sqrt{9}", 6),
    (r"\sqrt[3]{8}", 2),
    (r"3!", 6),
    (r"i^2", -1),
    (r"e^{i\pi}", -1),
    (r"\sin(\frac{\pi}{2})", 1),
    (r"2\cdot3\times4", 24),
    ("(1+2)(3)", 9),
    ("0.5", 0.5),
  ],
)
def test_a_formula_has_its_value(text, expected):
  assert cmath.isclose(formulas.value(text), expected, abs_tol=1e-12)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "+",
    "x/",
    "((",
    "2)",
    "1/2x",
    r"\log2",
    "|x|",
    "(-8)^{1/3}",
    r"\sqrt{-x}",
  ]
  + [
    "9^{99}",
    "x!",
    "99!",
    r"\frac12",
    r"\cos x",
    "1/0",
    "是",
    "[1)",
    "x=1",
    "\0",
  ]
  + [
    "9^{9^{9^{9}}}",
    "-" * 999 + "1",
    "(" * 9999,
    "1<2",
    r"\int x",
    "1,2",
    "²",
  ],
)
def test_what_has_no_value_or_several_readings_is_left_to_others(text):
  assert formulas.value(text) is None
  assert not formulas.differ(text, "12345")


@settings(deadline=None, max_examples=60)
@given(FORMULAS, FORMULAS)
def test_formulas_that_differ_here_differ_everywhere(one, other):
  if formulas.differ(one, other):
    assert sympy.simplify(in_python(one) - in_python(other)) != 0


@settings(deadline=None, max_examples=60)
@given(FORMULAS)
def test_a_formula_and_its_expansion_do_not_differ(text):
  expanded = sympy.latex(sympy.expand(in_python(text)))
  if "\\infty" not in expanded and "nan" not in expanded.lower():
    assert not formulas.differ(text, expanded)


def test_constants_are_equal_by_value_and_variables_are_not():
  assert formulas.are_one_constant(r"\frac{1+i}{2}", "0.5+0.5i")
  assert formulas.are_one_constant(r"2\sqrt{3}", r"\sqrt{12}")
  assert not formulas.are_one_constant(r"\sqrt{2}", "1.41421")
  for one, other in (("x", "x"), (r"\theta", r"\theta"), ("1/2x", "1/2x")):
    assert not formulas.are_one_constant(one, other)
