"Replies as models really write them, each with what a careful reader takes from it; where such a reader would shrug, the rules must too."
import random, string

import pytest

from cooper.reason.answers import inline_options, letter, parse_list, parse_number, parse_range, read

THREE = ("the red cube", "the blue ball", "the green cone")
TWO = ("left", "right")
TEN = tuple(f"thing {w}" for w in "one two three four five six seven eight nine ten".split())
COUNTS = ("2", "3", "4", "5")
AMBIGUOUS, NONE = "ambiguous", "none"

LETTERS = [ # reply, options, what it answers
    ("A", THREE, "A"), ("a", THREE, "A"), ("B.", THREE, "B"), ("(C)", THREE, "C"), ("[B]", THREE, "B"), ("**B**", THREE, "B"), ("`C`", THREE, "C"), ("'A'", THREE, "A"),
    ('"B"', THREE, "B"), ("B)", THREE, "B"), ("B:", THREE, "B"), ("b) the blue ball", THREE, "B"), ("B - the blue ball", THREE, "B"), ("B – the blue ball", THREE, "B"),
    ("Ｂ", THREE, "B"), ("Ⓒ", THREE, "C"), ("$B$", THREE, "B"), (r"$\text{B}$", THREE, "B"), (r"\boxed{B}", THREE, "B"), (r"\boxed{\text{C}}", THREE, "C"),
    (r"\(\boxed{(A)}\)", THREE, "A"), (r"\boxed{B. the blue ball}", THREE, "B"), ("Option B", THREE, "B"), ("option (b)", THREE, "B"), ("Choice C.", THREE, "C"),
    ("The answer is B", THREE, "B"), ("The answer is (B).", THREE, "B"), ("The answer is: B", THREE, "B"), ("The correct answer is **C**.", THREE, "C"),
    ("The correct option is C because it is nearest.", THREE, "C"), ("Answer: A", THREE, "A"), ("**Answer:** B", THREE, "B"), ("Answer:\nB", THREE, "B"), ("**Answer**\n\nC", THREE, "C"),
    ("Final answer: (A)", THREE, "A"), ("### The final answer is: C", THREE, "C"), ("<CONCLUSION>B</CONCLUSION>", THREE, "B"), ('{"answer": "C"}', THREE, "C"),
    ('{"answer": "B", "confidence": 0.9}', THREE, "B"), ("I'd go with B.", THREE, "B"), ("I would choose (C).", THREE, "C"), ("I choose the green cone.", THREE, "C"),
    ("My answer is C, since the cone hides the ball.", THREE, "C"), ("B is the correct answer.", THREE, "B"), ("So option C is correct.", THREE, "C"),
    ("The cube is far away.\nThe ball is near.\n\nB", THREE, "B"), ("Looking at the picture, I compare them.\n(B) the blue ball", THREE, "B"),
    ("<think>A? B?</think>C", THREE, "C"), ("<think>The answer is A.</think>\n\nThe answer is B.", THREE, "B"), ("<think>A</think><answer>B</answer>", THREE, "B"),
    ("<answer>\n(B)\n</answer>", THREE, "B"), (r"<answer>\boxed{C}</answer>", THREE, "C"), ("<answer>the blue ball", THREE, "B"), ("<answer>The Blue Ball!</answer>", THREE, "B"),
    ("the red cube", THREE, "A"), ("It is the green cone.", THREE, "C"), ("The blue ball is closer to the camera.", THREE, "B"), ("Answer: the red cube", THREE, "A"),
    ("Initially I thought A. But the answer is B.", THREE, "B"), ("The answer is A. Wait, no. The answer is C.", THREE, "C"), ("Step 1: look. Step 2: compare.\nThe answer is (A)", THREE, "A"),
    ("J", TEN, "J"), ("(F)", TEN, "F"), ("I", TEN, "I"), ("(I)", TEN, "I"), ("The answer is I.", TEN, "I"), ("H. thing eight", TEN, "H"), ("thing nine", TEN, "I"),
    ("3", COUNTS, "B"), ("There are four.", COUNTS, "C"), ("five", COUNTS, "D"), ("B) 3", COUNTS, "B"), ("left", TWO, "A"), ("on the right side", TWO, "B"),
    ("Right.", TWO, "B"), ("答案是 B", THREE, "B"), ("答案：C", THREE, "C"), ("La réponse est B.", THREE, "B"), ("A\n\nExplanation: the cube is nearest.", THREE, "A"),
    ("A or B", THREE, AMBIGUOUS), ("It is either A or B.", THREE, AMBIGUOUS), ("(A) and (C)", THREE, AMBIGUOUS), ("A, B", THREE, AMBIGUOUS), ("Both (B) and (C) are possible.", THREE, AMBIGUOUS),
    ("The red cube or the blue ball.", THREE, AMBIGUOUS), ("<answer>A</answer><answer>B</answer>", THREE, AMBIGUOUS), (r"\boxed{A} or \boxed{B}", THREE, AMBIGUOUS),
    ("not the red cube", THREE, AMBIGUOUS), ("Not A.", THREE, AMBIGUOUS), ("B) the red cube", THREE, AMBIGUOUS), ("The answer is A or C.", THREE, AMBIGUOUS), ("left or right", TWO, AMBIGUOUS),
    ("", THREE, NONE), ("   ", THREE, NONE), ("I cannot tell from this picture.", THREE, NONE), ("<think>B</think>", THREE, NONE), ("<think>it is B", THREE, NONE), ("(F)", THREE, NONE),
    ("Z", THREE, NONE), ("A chair is next to the window.", THREE, NONE), ("I am not sure.", THREE, NONE), ("Sorry, I can't help with that.", THREE, NONE), ("<answer></answer>", THREE, NONE),
    ("The image shows several objects on a table.", THREE, NONE), ("None", THREE, NONE), ("purple", THREE, NONE), ("Based on the image, the objects are equally far.", THREE, NONE)]

YES_NO = [("Yes", "yes"), ("yes.", "yes"), ("YES!", "yes"), ("**Yes**", "yes"), ("Yes, it is.", "yes"), ("The answer is yes.", "yes"), ("Answer: No", "no"), ("No", "no"), ("no, it isn't.", "no"),
    ("No. The cube is not visible.", "no"), ("<answer>yes</answer>", "yes"), (r"\boxed{No}", "no"), ("True", "yes"), ("False.", "no"), ("Y", "yes"), ("n", "no"), ("It is true", "yes"),
    ("<think>yes?</think>No", "no"), ("Yes\n\nThe ball is behind the cube.", "yes"), ("The final answer is: No", "no"), ("Correct", "yes"), ('{"answer": "yes"}', "yes"),
    ("Yes and no", AMBIGUOUS), ("yes or no", AMBIGUOUS), ("<answer>yes</answer> <answer>no</answer>", AMBIGUOUS), ("maybe", NONE), ("I have no idea", NONE), ("not true", NONE), ("", NONE),
    ("The cube is occluded.", NONE), ("<think>Yes.</think>", NONE), ("It is hard to say.", NONE), ("nobody", NONE)]

NUMBERS = [("3", "3"), ("3.", "3"), ("three", "3"), ("Three.", "3"), ("3.0", "3"), ("-4", "-4"), ("\u22124", "-4"), ("0", "0"), ("zero", "0"), ("none", "0"), ("1,234", "1234"), ("1e3", "1000"), (".5", "0.5"),
    ("1/2", "0.5"), ("½", "0.5"), ("2½", "2.5"), ("2 1/2", "2.5"), (r"\frac{3}{4}", "0.75"), ("٣", "3"), ("१२", "12"), ("４.５", "4.5"), ("五", "5"), ("二十三", "23"), ("三个", "3"), ("a dozen", "12"),
    ("twenty-one", "21"), ("one hundred and five", "105"), ("two thousand three hundred", "2300"), ("There are 4 chairs.", "4"), ("There are four chairs in the room.", "4"),
    ("The answer is 7.", "7"), ("Answer: 12", "12"), ("**Answer: 12**", "12"), (r"\boxed{6}", "6"), (r"<answer>\boxed{6}</answer>", "6"), ("<think>5 or 6</think>6", "6"),
    ("I count them: one here, two there.\nThe answer is 3", "3"), ("I count a red one and a blue one.\n\n2", "2"), ("2.5 m", "2.5 m"), ("250 cm", "250 cm"), ("250cm", "250 cm"), ("about 3 metres", "3 meters"),
    ("approximately 1.7 feet", "1.7 feet"), ("5'4\"", "1.6256 m"), ("5 feet 4 inches", "1.6256 m"), ("two and a half meters", "2.5 meters"), ("half a meter", "0.5 meter"), ("≈ 0.8 m", "0.8 m"),
    ("The distance is roughly 2 meters.", "2 meters"), ("90°", "90 °"), ("20 m²", "20 m2"), ("20 square meters", "20 square meters"), ("12.5 sq m", "12.5 sq m"), ("~", NONE),
    (r"\boxed{2} \ldots wait, let me count the ones behind the table again. \boxed{3}", "3"), ("1 or 2", AMBIGUOUS), ("2-3", AMBIGUOUS), ("2-3 m", AMBIGUOUS), ("between 2 and 3 meters", AMBIGUOUS), ("2 to 3", AMBIGUOUS),
    ("2 to 3 feet", AMBIGUOUS), (r"\boxed{2} or \boxed{3}", AMBIGUOUS), ("not 2", AMBIGUOUS), ("There are 3 cubes and 2 balls.", AMBIGUOUS), ("1, 2, 3", AMBIGUOUS), ("", NONE), ("many", NONE),
    ("I cannot determine the distance.", NONE), ("<think>3</think>", NONE), ("<think>3", NONE), ("__import__('os').getcwd()", NONE), ("several", NONE), ("nan", NONE), ("inf", NONE)]

LISTS = [("[2007, 2008]", "[2007, 2008]"), ("red, green and blue", "[red, green, blue]"), ("- chair\n- table", "[chair, table]"), ("1. chair\n2. table\n3. lamp", "[chair, table, lamp]"), ("(1, 2, 3)", "[1, 2, 3]"),
    ('["a", "b"]', "[a, b]"), ("The answer is: sofa, lamp, door", "[sofa, lamp, door]"), ("<answer>sofa; lamp</answer>", "[sofa, lamp]"), ("chair", NONE), ("", NONE)]


def check(got, expected):
    assert (got.value if got else got.outcome) == expected, got


@pytest.mark.parametrize("reply,options,expected", LETTERS)
def test_letters(reply, options, expected): check(read(reply, "letter", options), expected)

@pytest.mark.parametrize("reply,expected", YES_NO)
def test_yes_no(reply, expected): check(read(reply, "yes_no"), expected)

@pytest.mark.parametrize("reply,expected", NUMBERS)
def test_numbers(reply, expected): check(read(reply, "number"), expected)

@pytest.mark.parametrize("reply,expected", LISTS)
def test_lists(reply, expected): check(read(reply, "list"), expected)

def test_the_table_is_long_enough(): assert len(LETTERS) + len(YES_NO) + len(NUMBERS) + len(LISTS) >= 150


# --- properties

DRESSES = ["{}", "({})", "[{}]", "**{}**", "{}.", "{})", "Option {}", "Answer: {}", "The answer is {}.", "the answer is ({}).", r"\boxed{{{}}}", r"<answer>\boxed{{{}}}</answer>", "<think>Hm. A, B.</think>{}",
           "I look.\nI think.\n{}", "Final answer: {}", '{{"answer": "{}"}}', "Answer:\n\n{}", "Choice {}"]

@pytest.mark.parametrize("dress", DRESSES)
def test_every_letter_in_every_dress(dress):
    for l in string.ascii_uppercase:
        assert read(dress.format(l), "letter", ("",)*26).value == l
        assert read(dress.format(l), "letter", tuple(f"thing number {i}" for i in range(26))).value == l

@pytest.mark.parametrize("dress", [d for d in DRESSES if not d.startswith(("{})", "Option", "Choice", "[{"))])
def test_numbers_in_every_dress(dress):
    rng = random.Random(7)
    for _ in range(60):
        x = rng.choice([str(rng.randint(0, 999)), f"{rng.uniform(-50, 50):.2f}", f"{rng.uniform(0, 9):.1f} m", f"{rng.randint(1, 300)} cm"])
        got = read(dress.format(x), "number")
        assert got and parse_number(got.value)[0] == pytest.approx(parse_number(x)[0]), (dress, x, got)

def test_reading_a_reading_changes_nothing():
    for table, sort in ((YES_NO, "yes_no"), (NUMBERS, "number"), (LISTS, "list")):
        for reply, expected in table:
            if expected not in (AMBIGUOUS, NONE): assert read(expected, sort).value == read(read(expected, sort).value, sort).value

def test_thoughts_never_count():
    rng = random.Random(3)
    for reply, options, expected in LETTERS:
        if "<think>" in reply: continue
        thought = " ".join(rng.choice(["A", "(B)", r"\boxed{C}", "the answer is B.", "<answer>A</answer>"]) for _ in range(4))
        a, b = read(f"<think>{thought}</think>{reply}", "letter", options), read(reply, "letter", options)
        assert (a.outcome, a.value) == (b.outcome, b.value), reply

def test_two_different_answers_are_never_one():
    rng = random.Random(5)
    for _ in range(300):
        a, b = rng.sample("ABCDEFGH", 2)
        for form in ("<answer>{}</answer><answer>{}</answer>", "{} or {}", "({}) or ({})", "either {} or {}", "{}/{}", r"\boxed{{{}}} or \boxed{{{}}}", "The answer is {} or {}."):
            assert not read(form.format(a, b), "letter", ("",)*8), form.format(a, b)

def test_number_words_say_their_number():
    ones = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    def say(n):
        if n < 20: return ones[n]
        if n < 100: return tens[n//10 - 2] + (f"-{ones[n%10]}" if n % 10 else "")
        if n < 1000: return f"{ones[n//100]} hundred" + (f" and {say(n%100)}" if n % 100 else "")
        return f"{say(n//1000)} thousand" + (f" {'and ' if n % 1000 < 100 else ''}{say(n%1000)}" if n % 1000 else "")
    for n in [*range(130), *range(130, 20000, 137)]: assert parse_number(say(n)) == (n, None), (n, say(n))

def test_rubbish_never_raises():
    rng = random.Random(11)
    bits = list("AB()[]{}<>.,:;-–/\\ \n'\"0123½٣") + ["answer", "is", "<answer>", "</answer>", "<think>", "</think>", r"\boxed{", "or", "not", "yes", "no", "two", "m", "between", "to", "é"]
    for _ in range(3000):
        text = "".join(rng.choice(bits) + rng.choice(["", " "]) for _ in range(rng.randint(0, 25)))
        for sort in ("letter", "yes_no", "number", "list", "text"):
            got = read(text, sort, THREE if sort == "letter" else ())
            assert got.outcome in ("value", "none", "ambiguous") and (got.value is not None) == bool(got)


# --- parts

@pytest.mark.parametrize("question,options", [
    ("Which?\nA. red\nB. blue", ("red", "blue")), ("Which? (A) red (B) blue (C) green", ("red", "blue", "green")), ("Options: A: 2 m, B: 3 m", ("2 m", "3 m")), ("How many?", ()),
    ("Q?\nA) one\nB) two\nC) three\nD) four\nE) five\nF) six\nAnswer with the letter.", ("one", "two", "three", "four", "five", "six")), ("Where is Dr. B. Jones?", ()),
    ("Select from the following choices.\n(A) left\n(B) right", ("left", "right"))])
def test_options_in_the_question(question, options): assert inline_options(question) == options

def test_ranges(): assert [parse_range(t) for t in ("2-3 m", "between 1 and 2 feet", "10 cm to 20 cm", "3-2", "1 m to 2 ft", "1 and 2", "2")] == [(2., 3., "m"), (1., 2., "feet"), (10., 20., "cm"), None, None, None, None]

def test_lists_keep_thousands(): assert parse_list("1,000 and 2,000") == ["1,000", "2,000"]

def test_letters_after_h(): assert [letter(t)[0] for t in ("(Z)", "K.", "i", "I.")] == ["Z", "K", "I", "I"] and letter("I, for one") is None


# Written after the rules were, by somebody who tried to break them. None: no value may be taken, whatever it is called.

OPEN = ("red cube", "blue ball", "green cone", "none of these")
UNSEEN_LETTERS = [
    ('B', 'B'), ('b.', 'B'), ('**Answer:** C', 'C'), ('The correct option is (D).', 'D'), ('Answer: (B) blue ball', 'B'), ("I believe it's the green cone.", 'C'),
    ('Option A is wrong, so the answer is B.', 'B'), ('A, because the red cube is nearest', 'A'), ('Looking at the picture, B seems right but actually C.', None),
    ('Neither.', None), ('The answer is not A.', None), ('A or B', None), ('A and C', None), ('\\boxed{\\text{B}}', 'B'), ('$\\boxed{C}$', 'C'),
    ('<think>It is A. No, B.</think>\n\nC', 'C'), ('<think>It must be A', None), ('<answer>B</answer>', 'B'), ('<answer> (b) </answer>', 'B'),
    ('Final answer: **B. blue ball**', 'B'), ('{"answer": "C"}', 'C'), ('```json\n{"answer": "C"}\n```', 'C'),
    ('The answer is B: blue ball.\n\nNote that A would be wrong.', 'B'), ('None of these', 'D'), ('A cube is closer.', None), ('E', None), ('F', None),
    ('I cannot determine this.', None), ('答案是B', 'B'), ('选B', 'B'), ('正确答案：C', 'C'), ('Réponse : B', 'B'), ('Ⓑ', 'B'), ('Ｂ', 'B'), ('B)', 'B'), ('[B]', 'B'),
    ('Choice: B', 'B'), ("I'd go with B.", 'B'), ("It's B", 'B'), ('B is correct.', 'B'), ('The best answer would be option C', 'C'), ('ANSWER: A', 'A'),
    ('answer is: a', 'A'), ('The answer is (A) red cube, not (B) blue ball.', None), ('Between A and B, I pick B.', 'B'),
    ('Step 1: look at A.\nStep 2: look at B.\nTherefore, the answer is B.', 'B'), ('**B**\n\nThe blue ball is closer since it is larger.', 'B'), ('', None),
    ('   ', None), ('A B C D', None), ('the ball', None), ('So the final answer is $\\boxed{B}$.', 'B'), ('\\boxed{A} or \\boxed{B}', None),
    ('<answer>A</answer> <answer>B</answer>', None), ('Answer - B', 'B'), ('Answer B', 'B'), ('(A)(B)', None), ('My answer: The blue ball (B)', 'B'), ('blue', None),
    ('Red Cube', 'A'), ('red cubes', None), ('The red cube is further than the blue ball, so: blue ball', None), ('Hmm, B?', 'B'), ('B!', 'B'),
    ("It is B, isn't it?", None)]
UNSEEN_NUMBERS = [
    ('the red one', None), ('The one on the left.', None), ('that one', None), ('the left one has 3 legs', '3'), ('There is only one.', '1'), ('The answer is one.', '1'), ('one', '1'), ('a total of one', '1'), ('the twenty one chairs', '21'), ('a hundred and one', '101'),
    ('3', '3'), ('three', '3'), ('There are 3 objects.', '3'), ('3.0', '3'), ('about 1.5 m', '1.5 m'), ('1,5 m', None), ('1,2,3', None), ('5 minus 2', None),
    ('minus 4 m', '-4 m'), ('negative three', '-3'), ('3 (three)', '3'), ('1,200', '1200'), ('-2', '-2'), ('minus two', '-2'), ('0', '0'), ('zero', '0'),
    ('No objects.', None), ('none', '0'), ('The answer is 4.', '4'), ('4 or 5', None), ('between 4 and 5', None), ('4-5', None), ('2 + 1 = 3', None),
    ('I count 2 cubes and 1 ball, so 3 in total.', None), ('approximately 70 cm', '70 cm'), ('70cm', '70 cm'), ('5 ft 4 in', '1.6256 m'), ('1/2', '0.5'),
    ('half a metre', '0.5 meter'), ('1e3', '1000'), ('٣', '3'), ('三', '3'), ('Ⅲ', None), ('3rd', None), ('50%', None), ('\\boxed{12}', '12'), ('$12$', '12'),
    ("There are 3 in total.", "3"), ("I count 5 in all", "5"), ("<answer>3 in the picture</answer>", "3"), ("12 in.", "12 in"), ("It is 3 in tall.", "3 in"), ("about 12 in from the wall", "12 in"), # in: inches, or not
    ('"3"', "3"), ("The answer is '3'.", "3"), ("“4” cubes", "4"), ('He wrote "there are 3"', "3"), ('It is 5".', '5 "'), ("The pole is 6' high", "6 '"), # quotes, or inches and feet
    ("The distance is approximately 2 feet 6 inches.", "0.762 m"), ("He is 5'4\" tall", "1.6256 m"), ("about 5 feet and 4 inches tall", "1.6256 m"), ("30 cm and 40 cm", None), ("2 feet or 6 inches", None), ("2 m by 3 m", None),
    ('twelve (12)', '12'), ('~3', '3'), ('≈ 2.5 meters', '2.5 meters'), ('x = 3', '3'), ('3!', '3'), ('The distance is 2.5 meters (8.2 feet).', None),
    ('<think>5</think>6', '6'), ('Answer: 7 apples', '7'), ('a dozen', '12'), ('twenty-one', '21'), ('one hundred and five', '105'), ('10^2', None), ('NaN', None),
    ('inf', None), ('3 cubes, 3 balls', None), ('I see a couple of them', None), ('+4', '4'), ('4 m²', '4 m2'), ('2.50', '2.5'), ('-0', '-0'),
    ('The answer is: **-3**', '-3')]
UNSEEN_YES_NO = [
    ('Yes', 'yes'), ('No.', 'no'), ('yes, it is', 'yes'), ("No, it isn't", 'no'), ('Yes and no', None), ('True', 'yes'), ('It is true.', 'yes'),
    ('It is not true.', None), ('not really', None), ("I don't know", None), ('y', 'yes'), ('N', 'no'), ('<answer>no</answer>', 'no'), ('The answer is yes.', 'yes'),
    ('**No**, the ball is behind.', 'no'), ('Yes\n\nThe cube is left.', 'yes'), ('Correct.', 'yes'), ("That's incorrect", 'no'), ('是', None),
    ('\\boxed{\\text{Yes}}', 'yes'), ('There is no cube, so no.', 'no'), ('No way', 'no'), ('Yes!', 'yes'), ('yes yes', 'yes'), ('Indeed', None),
    ('It would be wrong to say yes', None)]
CHOICES = [("red cube", "A"), ("The blue ball.", "B"), ("A", None), ("(B)", None), ("b", None), ("Answer: C", None), ("<answer>green cone</answer>", "C"), ("\\boxed{blue ball}", "B"), ("the red cube, not the blue ball", None),
    ("<think>red cube</think>", None), ("<think>red cube</think>The green cone", "C"), ("red cube or blue ball", None), ("None of these", "D"), ("The answer is the blue ball", "B"), ("ball", None), ("", None), ("It's the blue ball, I think.", "B"), ("RED CUBE", "A"), ("(A) the blue ball", "B")]


@pytest.mark.parametrize("reply,expected", UNSEEN_LETTERS)
def test_unseen_letters(reply, expected): assert read(reply, "letter", OPEN).value == expected
@pytest.mark.parametrize("reply,expected", UNSEEN_NUMBERS)
def test_unseen_numbers(reply, expected): assert read(reply, "number").value == expected
@pytest.mark.parametrize("reply,expected", UNSEEN_YES_NO)
def test_unseen_yes_no(reply, expected): assert read(reply, "yes_no").value == expected
@pytest.mark.parametrize("reply,expected", CHOICES)
def test_choices_in_words(reply, expected): assert read(reply, "choice", OPEN).value == expected


def test_a_choice_needs_its_options():
    with pytest.raises(ValueError, match="a choice has options"): read("left", "choice")


# Found by trying to fool them once more: what named no option or no number was taken for one, and plain answers were not seen.

@pytest.mark.parametrize("reply,sort,expected", [
    ("N/A", "letter", NONE), ("n/a", "letter", NONE), ("A & B", "letter", AMBIGUOUS), ("A & C are both right.", "letter", AMBIGUOUS), ("_B_", "letter", "B"), ("__B__", "letter", "B"), ("b)", "letter", "B"),
    ("A big blue ball.", "letter", "B"), ("选项B", "letter", "B"), ("回答：B", "letter", "B"), ("The answer is B, not A.", "letter", AMBIGUOUS), ("It can't be A or C, so it must be B.", "letter", AMBIGUOUS),
    ("Yes, the cube is not visible.", "yes_no", "yes"), ("No, there is none.", "yes_no", "no"), ("Yes, but not really.", "yes_no", NONE), ("No - yes", "yes_no", AMBIGUOUS), ("No, although yes would do.", "yes_no", AMBIGUOUS),
    ("more than 3", "number", AMBIGUOUS), ("at least 3 m", "number", AMBIGUOUS), ("3+", "number", AMBIGUOUS), ("< 3", "number", AMBIGUOUS), ("over 2 meters", "number", AMBIGUOUS), ("less than about 2 m", "number", AMBIGUOUS),
    ("The red one is larger than the blue one, so it is 3 m.", "number", "3 m"), ("+3", "number", "3"), ("half a dozen", "number", "6"), ("1.000,5", "number", AMBIGUOUS), ("-3", "number", "-3")])
def test_fooled_no_more(reply, sort, expected): check(read(reply, sort, THREE if sort == "letter" else ()), expected)


# What the rules above must leave as it was: options that have such signs, and arrows and tags that bound nothing.

@pytest.mark.parametrize("reply,options,expected", [
    ("salt & pepper", ("salt & pepper", "sugar"), "A"), ("The answer is salt & pepper.", ("salt & pepper", "sugar"), "A"), ("N/A", ("cat", "N/A"), "B"), ("Both A & B", ("only A", "only B", "both A & B"), "C"), ("B. N/A", ("cat", "N/A"), "B")])
def test_signs_of_options_stay(reply, options, expected): assert read(reply, "letter", options).value == expected

@pytest.mark.parametrize("reply", ["Count -> 3", "Answer => 3", "<b>3</b>", "<count>3</count>", "The answer is <3>"])
def test_arrows_and_tags_are_no_bounds(reply): assert read(reply, "number").value == "3"


# A third round of unseen replies: an answer that is taken back is none, whichever comes first; tokens, languages and units around it.

@pytest.mark.parametrize("reply,sort,expected", [
    ("B. Actually, A.", "letter", AMBIGUOUS), ("It is the red cube. No, the blue ball.", "letter", AMBIGUOUS), ("A. red cube is incorrect. B. blue ball is correct.", "letter", AMBIGUOUS), ("Red cube. Or blue ball.", "letter", AMBIGUOUS),
    ("(A). Hmm, (B).", "letter", AMBIGUOUS), ("A. B.", "letter", AMBIGUOUS), ("A; B", "letter", AMBIGUOUS), ("The red cube is closer. However, the blue ball is nearest.", "letter", AMBIGUOUS), ("B. blue ball is not the answer.", "letter", AMBIGUOUS),
    ("A. is wrong", "letter", AMBIGUOUS), ("Wrong answer: A", "letter", NONE), ("The wrong answer is A.", "letter", AMBIGUOUS), ("I would rule out A. I would rule out C.", "letter", AMBIGUOUS), ("The answer is in the image.", "letter", NONE),
    ("B. The red cube is farther away.", "letter", "B"), ("B. A is incorrect, since it is far.", "letter", "B"), ("The blue ball. It hides the red cube.", "letter", "B"), ("The image is dark and does not show much, but my best guess is B.", "letter", "B"),
    ("<|im_start|>assistant\nB<|im_end|>", "letter", "B"), ("B</s>", "letter", "B"), ("答え：B", "letter", "B"), ("La respuesta es B.", "letter", "B"), ("[[B]]", "letter", "B"), ("{'answer': 'B'}", "letter", "B"), ("> B", "letter", "B"),
    ("It is 2.5 m. Actually, it is 3 m.", "number", AMBIGUOUS), ("There are 2. Hmm, I missed one, so 3.", "number", AMBIGUOUS), ("2 m. Or maybe 3 m.", "number", AMBIGUOUS), ("2; 3", "number", AMBIGUOUS), ("There are 2 cubes. There are 3 balls.", "number", AMBIGUOUS),
    ("The distance is 2.5 m, i.e. 250 cm.", "number", "2.5 m"), ("3 million", "number", "3000000"), ("3 m/s", "number", AMBIGUOUS), ("2024-01-02", "number", AMBIGUOUS), ("Step 1: count. Step 2: 3", "number", "3"), ("3 more chairs", "number", "3"), ("5ft4in", "number", "1.6256 m"),
    ("It's not false", "yes_no", NONE), ("Yes. No.", "yes_no", AMBIGUOUS), ("Yes. Actually no.", "yes_no", AMBIGUOUS), ("Yes. The ball stands on the left.", "yes_no", "yes"), ("No. It hides behind the wall.", "yes_no", "no")])
def test_what_is_taken_back_is_not_taken(reply, sort, expected): check(read(reply, sort, OPEN if sort == "letter" else ()), expected)
