"""Parses numbers and integer expressions of the policy without `eval`."""

import ast
import re
from fractions import Fraction

MAX_LENGTH = 256  # Characters; longer text is not read.
EXPRESSION = re.compile(r"[0-9+\-*/() ]+")
NUMBER = re.compile(
  r"([+-]?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?)"
  r"(?:/([0-9]+))?"
)
NODES = (ast.BinOp, ast.UnaryOp, ast.USub, ast.Add, ast.Sub, ast.Mult, ast.Div)


def number(text: str) -> Fraction | None:
  """Returns the number that is the whole text, and None for any other text.

  12, +01.50, 1,000 and 3/4 are numbers.
  """
  text = text.strip().replace("\N{MINUS SIGN}", "-")
  match = NUMBER.fullmatch(text) if len(text) <= MAX_LENGTH else None
  if not match or not match[2].strip("."):
    return None
  whole = Fraction(match[1] + match[2].replace(",", ""))
  divisor = int(match[3] or 1)
  return whole / divisor if divisor else None


def parse(text: str) -> ast.expr | None:
  """Returns the syntax tree of an expression of integers, + - * / and ().

  None for any other text. Powers, floor division, decimals, calls and names are
  refused, so that the tree is safe to evaluate.
  """
  if len(text) > MAX_LENGTH or not EXPRESSION.fullmatch(text):
    return None
  try:
    tree = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    return None
  nodes = (node for node in ast.walk(tree) if not isinstance(node, NODES))
  return tree if all(isinstance(node, ast.Constant) for node in nodes) else None


def terms(tree: ast.expr, sign: int = 1) -> list[str]:
  """Returns the signed terms of a sum: 5 - (3 - 2*4) -> +5, -3, +2 * 4."""
  match tree:
    case ast.BinOp(left, ast.Add(), right):
      return terms(left, sign) + terms(right, sign)
    case ast.BinOp(left, ast.Sub(), right):
      return terms(left, sign) + terms(right, -sign)
    case ast.UnaryOp(ast.USub(), operand):
      return terms(operand, -sign)
  return ["-+"[sign > 0] + ast.unparse(tree)]


def integers(tree: ast.expr) -> list[int]:
  """Returns the integers that an expression contains, in any order."""
  nodes = ast.walk(tree)
  return [node.value for node in nodes if isinstance(node, ast.Constant)]


def value(tree: ast.expr) -> Fraction | None:
  """Returns the exact value of an expression; None if it divides by 0."""
  match tree:
    case ast.Constant(number):
      return Fraction(number)
    case ast.UnaryOp(_, operand):
      inner = value(operand)
      return None if inner is None else -inner
  left, right = value(tree.left), value(tree.right)
  if left is None or right is None:
    return None
  match tree.op:
    case ast.Add():
      return left + right
    case ast.Sub():
      return left - right
    case ast.Mult():
      return left * right
  return left / right if right else None
