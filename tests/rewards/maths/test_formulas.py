"""Formulas at points: equal values decide, exactly for rational numbers."""

import time
from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.rewards.maths import formulas

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
    ("2^{-1}", Fraction(1, 2)),
    (r"\frac{1}{2}3", Fraction(3, 2)),
    (r"2\frac{1}{2}", Fraction(5, 2)),
    (r"-2\frac{1}{4}", Fraction(-9, 4)),
    (r"2\cdot\frac{1}{2}", 1),
    (r"2\sqrt{9}", 6),
    (r"\sqrt[3]{8}", 2),
    (r"\sqrt[3]{-8}", -2),
    (r"3!", 6),
    (r"\binom{5}{2}", 10),
    (r"i^2", -1),
    (r"e^{i\pi}", -1),
    (r"\sin(\frac{\pi}{2})", 1),
    (r"\sin 30^{\circ}", Fraction(1, 2)),
    (r"\cos^2\pi", 1),
    (r"\ln e^3", 3),
    (r"\log_2 8", 3),
    (r"|2-5|", 3),
    (r"2\cdot3\times4", 24),
    ("(1+2)(3)", 9),
    ("0.5", Fraction(1, 2)),
    ("9^{99}", 9**99),
    (r"\frac{1}{10^{12}}", Fraction(1, 10**12)),
  ],
)
def test_a_formula_has_its_value(text, expected):
  assert formulas.same(formulas.constant(text), Fraction(expected))


@pytest.mark.parametrize(
  "text",
  ["", "+", "x/", "((", "2)", "1/2x", "(-8)^{1/3}", "x!", r"\frac12", "1/0"]
  + ["是", "[1)", "x=1", "\0", "f(x", r"\sin^{-1} x", r"\sin x/2", "x_{", "|x"]
  + ["9^{9^{9^{9}}}", "99999!", "2^{99999}", r"\exp(\exp(\exp(99)))"]
  + [
    "-" * 999 + "1",
    "(" * 9999,
    "1<2",
    r"\int x",
    "1,2",
    "²",
    r"\binom{x}{2}",
  ],
)
def test_what_has_no_value_or_several_readings_is_left_to_others(text):
  start = time.process_time()
  assert formulas.value(text) is None
  assert formulas.compare(text, "12345") is None
  assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
  ("one", "other", "expected"),
  [
    ("x+1", "1+x", True),
    ("(x+1)^2", "x^2+2x+1", True),
    ("(x+1)^2", "x^2+2x+2", False),
    (r"\sin^2 x+\cos^2 x", "1", True),
    (r"\ln(xy)", r"\ln x+\ln y", None),  # Not where both are negative.
    (r"\sqrt{x^2}", "x", None),
    (r"|x+2|", "x+2", None),
    (r"|x-2|", "x-2", False),
    (r"2\sqrt{3}", r"\sqrt{12}", True),
    (r"\sqrt{2}", "1.41421", False),
    (r"\frac{1+i}{2}", "0.5+0.5i", True),
    ("10^{-12}", "10^{-13}", False),
    ("10^{-12}x", "10^{-13}x", False),
    (r"10^{15}\pi", r"10^{15}\pi+1", False),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
    (r"\frac{\log 3}{\log 2}", r"\log_2 3", True),
    (r"\log 100", "2", False),
    ("v_{\\perp}", "v_\\perp", True),
    ("x_1", "x_2", False),
    ("x'", "x", False),
    ("1/2x", "1/2x", None),
    ("2f(x)", "f(x)2", True),
    ("f(x)", "f(y)", None),
    ("f(2x)", "2f(x)", None),
    ("f(2x)", "7", False),
  ],
)
def test_formulas_are_compared(one, other, expected):
  assert formulas.compare(one, other) is expected


@settings(deadline=None, max_examples=60)
@given(FORMULAS, FORMULAS)
def test_what_is_decided_here_is_so_everywhere(one, other):
  equal = formulas.compare(one, other)
  if equal is not None:
    difference = sympy.simplify(in_python(one) - in_python(other))
    assert (difference == 0) is equal


@settings(deadline=None, max_examples=60)
@given(FORMULAS)
def test_a_formula_and_its_expansion_do_not_differ(text):
  expanded = sympy.latex(sympy.expand(in_python(text)))
  if "\\infty" not in expanded and "nan" not in expanded.lower():
    assert formulas.compare(text, expanded) is not False


def test_values_are_given_to_variables():
  values = {"x": Fraction(2), "y": Fraction(3)}
  assert formulas.value_with("x^2+y", values) == 7
  assert formulas.value_with("x^2+z", values) is None
  assert formulas.variables("k_{B} T") == {"k_B", "T"}
