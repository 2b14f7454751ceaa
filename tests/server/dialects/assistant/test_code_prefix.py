from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.server.dialects.assistant.code_prefix import is_code

CODE = [
    "def hello",
    "def factorial(n):",
    "def",
    "async def fetch(url: str) -> bytes:",
    "    def indented(self):",
    'def add(a, b):\n    """Return the sum of a and b."""\n',
    "class Stack",
    "class Stack(Generic[T]):",
    "class Point extends Shape {",
    "@app.route('/')\ndef index():",
    "import numpy as np",
    "import os, sys",
    "from collections import deque\n\n",
    "import { useState } from 'react'",
    "function fibonacci(n) {",
    "function fibonacci",
    "export default function App() {",
    "const sum = (a, b) =>",
    "let mut total: u32 = 0;",
    "(a, b) => a +",
    "fn main() {",
    "pub fn parse<T>(text: &str) -> Result<T> {",
    "func (s *Server) Start() error {",
    "fun main() {",
    "struct Point",
    "enum Color { Red,",
    "interface User {",
    "type Props = {",
    "public static void main(String[] args) {",
    "public class Main",
    "private int count;",
    "int main",
    "int main(void) {",
    "unsigned long count = 0;",
    "void *copy(const char *source) {",
    "#include <stdio.h>",
    "#!/usr/bin/env python3",
    "<?php",
    "<!DOCTYPE html>",
    "<div class='x'>",
    "for i in range(len(list)): print(i)",
    "for i in range(10",
    "for item in items:",
    "for (int i = 0; i < n; i++) {",
    "while (true) {",
    "if x == 3:",
    "if not done:",
    "if (a > b) return a;",
    "with open('file') as f:",
    "try:",
    "try {",
    "except ValueError as error:",
    "return a + b",
    "return make(1)",
    "raise ValueError('no')",
    "print('hello'",
    "print('hello')",
    "console.log(a(b(1)), 2);",
    "std::sort(v.begin(), v.end());",
    "x = 5",
    "self.items[0] += 1",
    "count: int = 0",
    "a, b = b, a",
    "SELECT name FROM users WHERE",
    "CREATE TABLE users (",
    "# sort a list in place",
    "# a stack\nclass Stack:\n",
    "// returns the sum of two numbers",
    "/* quick sort */",
    '"""Helpers for dates."""\n',
    "-- all users\nSELECT *",
    "package main",
    "using System;",
]

WORDS = [
    "",
    "  \n ",
    "hello",
    "Write a function that adds two numbers",
    "write a python function to sort a list",
    "function to sort a list",
    "a function that returns x = 5",
    "class for parsing dates",
    "import numpy and compute the mean",
    "import data from a CSV file",
    "from a list of numbers return the largest",
    "for each item in the list print its name",
    "for every number in the list, print it",
    "if the list is empty, raise an error",
    "while reading a file, count its lines",
    "return the sum of two numbers",
    "print hello world",
    "let the user choose a file",
    "select all users older than 30",
    "public speaking timer app",
    "type checker for JSON",
    "string reversal",
    "interface design for a shop",
    "try to find the bug",
    "with two lists, make a dict",
    "fibonacci(n) function in python",
    "sort() and search() for a linked list",
    "A REST API (with auth) for notes",
    "# Task\nWrite a function that adds two numbers",
    "Complete this:\ndef add(a, b):",
    "def add(a, b):\n    return a - b\n\nPlease find the bug in this.",
    "```python\ndef add(a, b):\n```",
    "¿Cómo ordenar una lista?",
    "fun facts about lists",
    "do a quick sort",
    "async code that fetches a page",
]


@pytest.mark.parametrize("prompt", CODE)
def test_beginning_of_a_program(prompt: str) -> None:
    assert is_code(prompt)


@pytest.mark.parametrize("prompt", WORDS)
def test_description(prompt: str) -> None:
    assert not is_code(prompt)


@given(st.text())
def test_any_text_has_an_answer(prompt: str) -> None:
    assert is_code(prompt) in (True, False)


@pytest.mark.parametrize("piece", ["(", ")", "a(", "a(b)(", "a.", "<", "a,", "[", "{ ", "a b ", "x = ", "('", "-", "#", "if ("])
def test_no_text_takes_long(piece: str) -> None:
    """Patterns with catastrophic backtracking would hang here."""
    assert is_code(piece * 100_000) in (True, False)
