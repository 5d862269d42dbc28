"""Rules must give a right answer its due and give a clever evasion nothing."""
import itertools, math, time, pytest
from cooper.reason.answers import choose, close, extract, letter, mean_relative_accuracy, normalise, only_number, parse_number, same, yes_no

@pytest.mark.parametrize("reply,answer", [
    (r"<think>a</think><answer>\boxed{2}</answer>", "2"), (r"<answer>\boxed{2} or \boxed{3}</answer>", "3"), (r"<answer>\boxed{\text{red {cube}}}</answer>", r"\text{red {cube}}"),
    (r"<answer>It is \boxed{\frac{1}{2}}.</answer>", r"\frac{1}{2}"), ("<answer>\nred\ncube\n</answer>", "red\ncube"), ("<answer>1</answer> <answer>2</answer>", "2"),
    (r"<think>\boxed{7}</think><answer>8</answer>", "8"), (r"<think>\boxed{7}</think>", None), ("<think>never closed <answer>3</answer>", None), ("", None), ("   ", None),
    (r"<answer>\boxed{2", r"\boxed{2"), (r"<answer>\boxed{2}", "2"), (r"\boxed{}", r"\boxed{}"), ("So the answer is: B.", "B"), ("**Answer:** 3", None),
    ("The answer is 1.5 m.", "1.5 m"), ("The answer is 2. No wait, the answer is 3.", "3"), ("I look.\nI think.\n(C)", "(C)"), ("(B) red cube", "(B) red cube"),
    ("There are several ways to see this picture and none is final.", None), ("left", "left"), ("<answer></answer>", None),
    ("no opening</think> red", "red"), ("<think>a</think> b</think> red", "red"), ("red <think>or blue</think>", None),
    (r"<answer>\boxed{red}</answer> \boxed{blue}", "red"), (r"\boxed{blue} <answer>red</answer>", "red")])
def test_extract(reply, answer):
    got = extract(reply)
    if reply == "**Answer:** 3": assert same(got, "3")   # dressing may stay, the answer is the same
    else: assert got == answer

@pytest.mark.parametrize("text,value,unit", [
    ("2", 2, None), ("-2.5", -2.5, None), ("\u22122", -2, None), ("+3", 3, None), (".5", .5, None), ("1,234,567", 1234567, None), ("1e-2", .01, None), ("3/4", .75, None),
    (r"\frac{3}{4}", .75, None), (r"$2$", 2, None), (r"1.5\text{ m}", 1.5, "m"), (r"1.5\,m", 1.5, "m"), ("two", 2, None), ("Twenty-one", 21, None), ("ninety nine", 99, None),
    ("none", 0, None), ("a dozen", 12, None), ("1 km", 1000, "m"), ("12 in", .3048, "m"), ("1 ft", .3048, "m"), ("5'4\"", 1.6256, "m"), ("5 feet 4 inches", 1.6256, "m"),
    ("5 feet and 4 inches", 1.6256, "m"), ("1 m 50 cm", 1.5, "m"), ("3 millimetres", .003, "m"), ("2 centimeters.", .02, "m"), ("roughly 3 yards", 2.7432, "m"),
    ("180 degrees", 180, "deg"), ("90\u00b0", 90, "deg"), ("3.141592653589793 rad", 180, "deg"), ("\uff12", 2, None)])
def test_parse_number(text, value, unit):
    got = parse_number(text)
    assert got is not None and math.isclose(got[0], value, rel_tol=1e-9, abs_tol=1e-12) and got[1] == unit

@pytest.mark.parametrize("text", ["", " ", "red", "2 or 3", "2 to 3", "2-3", "not 2", "2 3", "1/0", "1e999", "12 apples", "4 inches 5 feet", "5 m 3 deg", "2 m 3 m", "1,23", "1.2.3", "--2",
    "two three", "nan", "inf", "__import__('os').getcwd()", "2**3", "[2]*9", "2;3", "x2", "cube 2"])
def test_no_number(text): assert parse_number(text) is None

def test_no_code_is_run(tmp_path):
    mark, start = tmp_path/"ran", time.process_time()
    for hostile in (f"__import__('pathlib').Path({str(mark)!r}).touch()", f"open({str(mark)!r}, 'w')", "9"*5000, "(" * 3000, "{"*3000, "1/"*2000, "\\boxed{"*500, "<answer>"*2000, "<think>"*2000, "the answer is "*1000, "1 m "*2000, "1,"*2000, "a (A) "*2000, "twenty "*2000):
        extract(hostile); same(hostile, "2"); same("2", hostile); choose(hostile, ("1", "2")); mean_relative_accuracy(hostile, 2); yes_no(hostile)
    assert not mark.exists()
    assert time.process_time() - start < 20   # no pattern explodes on a hostile text

CLEVER = ["left or right", "right or left", "left, right", "not right", "it isn't right", "either left or right", "neither", "left/right", "", " ", "?", "right and left", "both",
    "unknown", "I cannot say", "right, or maybe not", "between left and right", "leftright", "copyright", "\\boxed{left} \\boxed{}", "opposite of left"]
@pytest.mark.parametrize("text", CLEVER)
def test_evasions_of_two_way_questions_get_nothing(text):
    assert not same(extract(f"<answer>{text}</answer>"), "right", "relation", ("left", "right"))
    assert not same(extract(f"<answer>\\boxed{{{text}}}</answer>"), "right", "relation", ("left", "right"))

@pytest.mark.parametrize("text", ["2 or 3", "not 2", "1, 2, 3", "22", "0.2", "-2", "2 3", "1 to 3", "1-3", "two or three", "one of two", "2!=3", "at least 1", "a 2 and a 4", "2 not 3", "12", "2%",
    "many", "\\boxed{2", "0 1 2 3 4 5 6"])
def test_evasions_of_counts_get_nothing(text):
    choices = tuple("0123456")
    assert not same(extract(f"<answer>{text}</answer>"), "2", "count") or text == "\\boxed{2"
    assert not same(extract(f"<answer>\\boxed{{{text}}}</answer>"), "2", "count", choices) or text == "\\boxed{2"

@pytest.mark.parametrize("text", ["2", "2.", "two", "Two", "2.0", "There are 2.", "2 balls", "\\text{2}", "$2$", " 2 ", "exactly two cubes"])
def test_ways_to_say_two(text):
    assert same(text, "2", "count") and same(text, "2", "count", tuple("0123456")) and not same(text, "3", "count")

NAMES = ("red cube", "blue ball")
@pytest.mark.parametrize("text,right", [("red cube", 0), ("Red Cube.", 0), ("the red cube", 0), ("A", 0), ("(B)", 1), ("b", 1), ("B) blue ball", 1), ("B) red cube", None), ("The blue ball is closer.", 1),
    ("the red cube, not the blue ball", None), ("red ball", None), ("cube", None), ("red cube blue ball", None), ("C", None), ("blue balls", None), ("a blue ball", 1), ("a", 0)])
def test_choose_names(text, right): assert choose(text, NAMES) == right

@pytest.mark.parametrize("text,choices,right", [("70 cm", ("0.7 m", "0.9 m"), 0), ("0.9", ("0.7 m", "0.9 m"), 1), ("2", ("1.5 m", "2 m"), 1), ("2", ("2 cm", "2 m"), None), ("about 150 cm", ("1.5 m", "2 m"), 0),
    ("1 m 50 cm", ("150 cm", "2 m"), 0), ("2 or 1.5 m", ("1.5 m", "2 m"), None), ("200 mm", ("1.5 m", "2 m"), None), ("90 deg", ("1.5707963267948966 rad", "2 rad"), 0), ("three", ("2", "3"), 1), ("2 deg", ("2 m", "3 m"), None)])
def test_choices_in_units(text, choices, right): assert choose(text, choices) == right

def test_choices_that_overlap():
    options = ("ball", "red ball", "big red ball")
    assert [choose(t, options) for t in ("ball", "the red ball", "it is the big red ball", "red ball, ball")] == [0, 1, 2, None]
    assert choose("left", ("left", "left of it")) == 0 and choose("same", ("same", "same")) is None
    assert choose("B", ("B", "A")) == 0   # an option whose text is a letter is meant by its text

def test_letters_only_where_shown():
    assert choose("A", NAMES) == 0 and choose("A", NAMES, letters=False) is None
    assert [letter(t) for t in ("a red cube", "an apple", "Apple", "", "AB", "I, too")] == [None]*6
    assert same("(B) red", "B") and same("b", "(B)") and not same("(A)", "B") and not same("A and B", "B") and not same("A, B", "B")

@pytest.mark.parametrize("text,value", [("yes", True), ("No.", False), ("Yes, there is.", True), ("true", True), ("The answer is no", False), ("no yes", None), ("", None), ("not yes", None),
    ("I have no idea", None), ("nobody", None), ("eyes", None), ("yes or no", None)])
def test_yes_no(text, value): assert yes_no(text) is value

def test_same_is_symmetric_and_reflexive_on_plain_answers():
    plain = ["2", "two", "2.0", "3", "-2", "1.5 m", "150 cm", "0.0015 km", "5 feet 4 inches", "90 deg", "B", "(B)", "a red cube", "red cube", "gray ball", "grey ball", "yes", "no", "left", "right"]
    for a, b in itertools.product(plain, plain): assert same(a, b) == same(b, a), (a, b)
    assert all(same(a, a) for a in plain)
    assert same("red cube", "Red cubes") is False

def test_tolerance_and_units():
    assert not same("1.9", "2") and same("1.9", "2", rel_tol=.1) and same("190 cm", "2 m", rel_tol=.1) and not same("1.7 m", "2 m", rel_tol=.1)
    assert same("150", "150 cm") and same("1.5", "1.5 m") and not same("1.5", "150 cm") and not same("2 deg", "2 m") and not close((1., "m"), (1., "deg"))
    assert same("0", "0.0") and same("0", "none") and not same("0.001", "0", rel_tol=.1)

def test_text():
    assert same("The  Red-Cube!", "red cube") and not same("!!!", "???") and not same("red cubes", "red cube") and normalise("An apple, a day") == "apple day"
    assert not same(None, "x") and not same("", "") and not same(" ", "x")

def test_mean_relative_accuracy():
    assert mean_relative_accuracy(2, 2) == 1 and mean_relative_accuracy(-2, -2) == 1 and mean_relative_accuracy(2, -2) == 0   # the reference's signed version gives 1
    assert mean_relative_accuracy(0, 0) == 1 and mean_relative_accuracy(1e-9, 0) == 0                                         # the reference divides by zero
    assert mean_relative_accuracy("1.5 m", "150 cm") == 1 and mean_relative_accuracy(None, 3) == 0 and mean_relative_accuracy(math.nan, 3) == 0
    assert [mean_relative_accuracy(1 + e, 1) for e in (.01, .06, .12, .3, .49, .5, 2)] == [1., .9, .8, .4, .1, 0., 0.]
    with pytest.raises(ValueError, match="truth is 'tall'"): mean_relative_accuracy(1, "tall")

def test_only_number():
    assert only_number("There are twenty-one of them") == (21., None) and only_number("it's 3 m away") == (3., "m")
    for t in ("", "no numbers", "1 and 2", "v2", "2nd", "not one"): assert only_number(t) is None
