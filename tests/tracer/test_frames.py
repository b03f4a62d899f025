"""The program's frames: liveness, variables put back, the iterators of running loops (B1, C3)."""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref

import pytest

from tracer import frames, liveness
from tracer.frames import UserFrame

POSITIONED = (type(iter(range(1))), type(iter([])), type(iter(())), enumerate)


def here():
    return sys._getframe(1)


def live(frame):
    return set(frames.live_locals(frame))


class TestLiveness:
    """What may still be read is state; the rest is not (and a large dead batch is not stored)."""

    def test_a_straight_line(self):
        def run():
            used, dead = 1, 2
            assert dead
            found = live(here())
            return used, found

        assert run()[1] == {"used"}

    def test_a_loop_reads_in_its_next_pass(self):
        def run():
            total = 0
            for _ in range(2):
                fresh = total + 1
                found = live(here())
                total = fresh
                scratch = 3
                del scratch
            return found

        # `total` is written before it is read again; `found` is read at the end.
        assert run() == {"fresh"}

    def test_a_while_loop_reads_its_condition(self):
        def run():
            step, limit = 0, 2
            while step < limit:
                found = live(here())
                step += 1
            return found

        assert run() == {"step", "limit"}

    def test_a_handler_may_read(self):
        def run():
            fallback, unread = 5, 6
            assert unread
            try:
                return live(here()), fallback * 0
            except ValueError:
                return fallback

        found, _ = run()
        assert "fallback" in found
        assert "unread" not in found

    def test_finally_reads(self):
        def run():
            log = []
            try:
                return live(here())
            finally:
                log.append(1)

        assert "log" in run()

    def test_closures_are_always_state(self):
        def run():
            count = 0

            def bump():
                nonlocal count
                count += 1

            bump()
            return live(here())

        assert "count" in run()

    def test_a_branch_not_taken_counts(self):
        def run(flag=True):
            maybe = 1
            found = live(here())
            if flag:
                return found
            return maybe

        assert run() == {"flag", "maybe"}

    def test_a_variable_deleted_later_is_needed(self):
        def run():
            gone = 1
            found = live(here())
            del gone
            return found

        assert run() == {"gone"}

    def test_at_module_level_what_functions_mention_lives(self):
        text = "step = 1\ndead = 2\nknob = 3\ndef f():\n    return knob\nlook()\nstep + 1\n"
        seen = []
        namespace = {"look": lambda: seen.append(live(sys._getframe(1)))}
        exec(compile(text, __file__, "exec"), namespace)
        assert "knob" in seen[0]
        assert "step" in seen[0]
        assert "dead" not in seen[0]

    def test_before_the_first_instruction_all_is_taken_for_live(self):
        def run(a, b):
            return a

        assert {"a", "b"} <= liveness.live_names(run.__code__, -1)

    def test_asking_keeps_nothing_alive(self):
        class Big:
            pass

        def run():
            big = Big()
            ref = weakref.ref(big)
            frames.live_locals(here())
            frames.int_local([UserFrame("run", here())], "epoch")
            del big
            return ref

        assert run()() is None


class TestPutLocal:
    def test_a_local(self):
        def run():
            x, other = 1, 2
            frames.put_local(here(), "x", "new")
            return x, other

        assert run() == ("new", 2)

    def test_an_argument_of_an_outer_frame(self):
        def inner():
            frames.put_local(sys._getframe(1), "n", 10)

        def outer(n):
            inner()
            return n

        assert outer(1) == 10

    def test_a_variable_that_a_closure_shares(self):
        def run():
            n = 1

            def read():
                return n

            frames.put_local(here(), "n", 2)
            return n, read()

        assert run() == (2, 2)

    def test_a_variable_not_set_yet(self):
        def run(flag=False):
            if flag:
                late = None
            frames.put_local(here(), "late", 3)
            return late

        assert run() == 3

    def test_a_module_variable(self):
        text = "x = 1\nput()\ny = x\n"
        namespace = {"put": lambda: frames.put_local(sys._getframe(1), "x", 5)}
        exec(compile(text, __file__, "exec"), namespace)
        assert namespace["y"] == 5

    def test_other_variables_stay_as_they_are(self):
        def run():
            a, b = [], 1
            same = a
            frames.put_local(here(), "b", 2)
            a = 3
            frames.put_local(here(), "b", 4)
            return a, b, same

        assert run() == (3, 4, [])

    def test_a_generator_that_waits(self):
        def count():
            n = 0
            while True:
                n += 1
                yield n

        generator = count()
        next(generator)
        frames.put_local(generator.gi_frame, "n", 41)
        assert next(generator) == 42

    def test_a_class_body_keeps_its_names(self):
        # Its f_locals is the namespace itself: asking must not empty it.
        class Body:
            epoch = 7
            live = frames.live_locals(sys._getframe())
            found = frames.int_local([UserFrame("Body", sys._getframe())], "epoch")
            frames.put_local(sys._getframe(), "epoch", 8)

        assert (Body.found, Body.epoch) == (7, 8)

    def test_code_run_with_its_own_namespace_keeps_its_names(self):
        own = {}
        text = "x = 1\nlook()\ny = x + 1\n"
        look = lambda: frames.live_locals(sys._getframe(1))  # noqa: E731
        exec(compile(text, __file__, "exec"), {"look": look}, own)
        assert own == {"x": 1, "y": 2}


def iterators(frame):
    return [i for i in frames.loop_iterators(frame) if isinstance(i, POSITIONED)]


class TestLoopIterators:
    def test_none_outside_of_loops(self):
        def run():
            return iterators(here())

        assert run() == []

    def test_a_for_loop(self):
        def run():
            it = iter([1, 2])
            for _ in it:
                return iterators(here())[0] is it
            return None

        assert run()

    def test_nested_loops_outermost_first(self):
        def run():
            a, b, c = iter(range(2)), iter([1]), iter((5,))
            for _ in a:
                for _ in b:
                    for _ in c:
                        return [x is y for x, y in zip(iterators(here()), (a, b, c), strict=True)]
            return None

        assert run() == [True, True, True]

    def test_inside_with_and_try(self):
        def run():
            a, b = iter(range(2)), enumerate("ab")
            with contextlib.nullcontext(), contextlib.nullcontext():
                for _ in a:
                    try:
                        with contextlib.nullcontext():
                            for _ in b:
                                try:
                                    raise ValueError
                                except ValueError:
                                    found = iterators(here())
                    finally:
                        again = iterators(here())
            return [x is y for x, y in zip(found, (a, b), strict=True)], [x is a for x in again]

        assert run() == ([True, True], [True])

    def test_a_while_loop_inside_a_for_loop(self):
        def run():
            it = iter(range(3))
            for i in it:
                while i >= 0:
                    i -= 1
                    found = iterators(here())
                    assert len(found) == 1
                    assert found[0] is it
            return True

        assert run()

    def test_while_a_call_has_operands_waiting(self):
        def run():
            it = iter(range(1))
            for _ in it:
                found = max(1, len(iterators(here())), [1, 2, *iterators(here())][1])
                assert found == 2
                return {"a": 1, "b": (iterators(here()), 3)}["b"][0][0] is it
            return None

        assert run()

    def test_in_a_comprehension_of_a_loop(self):
        def run():
            it = iter(range(2))
            outer = sys._getframe()
            for _ in it:
                found = [(iterators(outer), iterators(here())) for _ in range(1)]
            return it, found[0]

        it, (outer, inner) = run()
        assert outer[0] is it
        # From Python 3.12 a comprehension is no frame of its own.
        assert type(inner[-1]) is type(iter(range(1)))
        assert inner[-1] is not it

    def test_in_a_generator_that_waits_and_in_one_that_runs(self):
        def generate():
            for i in range(5):
                for j in [10, 20]:
                    yield i + j, iterators(here())

        generator = generate()
        for _ in range(3):
            _, running = next(generator)
        waiting = iterators(generator.gi_frame)
        assert [type(i).__name__ for i in waiting] == ["range_iterator", "tuple_iterator"]
        assert len(running) == 2
        assert all(a is b for a, b in zip(waiting, running, strict=True))

    def test_after_an_exception_was_handled_in_the_loop(self):
        def run():
            it = iter(range(3))
            for i in it:
                with contextlib.suppress(ValueError):
                    raise ValueError
                if i == 2:
                    return [x is it for x in iterators(here())]
            return None

        assert run() == [True]

    def test_looking_takes_no_reference_along(self):
        def run():
            items = [object()]
            it = iter(items)
            before = sys.getrefcount(it)
            for _ in it:
                for _ in range(5):
                    frames.loop_iterators(here())
                return sys.getrefcount(it) - before
            return None

        assert run() == 1  # the frame's own

    @pytest.mark.parametrize("width", [1, 5, 40])
    def test_behind_many_locals_and_cells(self, width):
        names = [f"v{i}" for i in range(width)]
        text = f"""
def run(look):
    {"; ".join(f"{n} = {i}" for i, n in enumerate(names))}
    def inner(): return {names[0]}, {names[-1]}
    it = iter(range(2))
    for _ in it:
        return look()[0] is it, inner()
"""
        namespace = {}
        exec(compile(text, __file__, "exec"), namespace)
        assert namespace["run"](lambda: iterators(sys._getframe(1))) == (True, (0, width - 1))


class TestUserFrames:
    def test_innermost_first_with_names_that_recur(self):
        def again(n):
            return again(n - 1) if n else frames.user_frames(sys._getframe())

        found = again(2)
        base = "TestUserFrames.test_innermost_first_with_names_that_recur"
        own = [f.name for f in found if f.name.startswith(base)]
        inner = f"{base}.<locals>.again"
        assert own == [f"{inner}#3", f"{inner}#2", inner, base]

    def test_libraries_are_left_out(self):
        found = functools.reduce(lambda a, b: frames.user_frames(sys._getframe()), [1, 2])
        assert all(frames.is_user_file(f.frame.f_code.co_filename) for f in found)
        assert not any("pytest" in f.frame.f_code.co_filename.replace(__file__, "") for f in found)

    def test_nothing_below_the_bottom(self):
        def program():
            return [f.name.rpartition(".")[2] for f in frames.user_frames(sys._getframe())]

        def start():
            __rewind_program_starts_here__ = True  # noqa: F841  the mark itself
            return program()

        assert start() == ["program"]

    def test_a_site_is_where_the_frames_stand(self):
        def place():
            return frames.site_of(frames.user_frames(sys._getframe())[:1])

        ((file, name, line),) = place()
        assert (file, name.rpartition(".")[2]) == ("test_frames.py", "place")
        assert line == place.__code__.co_firstlineno + 1

    @pytest.mark.parametrize(
        ("file", "own"),
        [
            (__file__, True),
            ("<stdin>", True),
            ("<frozen importlib._bootstrap>", False),
            ("<string>", True),
            (contextlib.__file__, False),
            (pytest.__file__, False),
            (frames.__file__, False),
        ],
    )
    def test_whose_file_it_is(self, file, own):
        assert frames.is_user_file(file) is own

    def test_a_program_may_lie_anywhere(self, tmp_path, monkeypatch):
        monkeypatch.setattr(frames, "_programs", set())
        monkeypatch.setattr(frames, "_LIBRARIES", (f"{tmp_path}/",))
        frames.is_user_file.cache_clear()
        assert not frames.is_user_file(f"{tmp_path}/train.py")
        frames.add_program_folder(str(tmp_path))
        assert frames.is_user_file(f"{tmp_path}/train.py")
        monkeypatch.undo()
        frames.is_user_file.cache_clear()


@pytest.mark.parametrize(
    ("recorded", "here", "same"),
    [
        (["<module>:9", "main:3", "train:5"], ["<module>:9", "main:3", "train:5"], True),
        (["<module>:9", "main:3", "train:5"], ["train:5"], True),
        (["<module>:9", "main:3", "train:5"], ["train:6"], False),
        (["<module>:9", "main:3", "train:5"], ["test.<lambda>:1", "train:5"], True),
        (["train:5"], ["again:2", "train:5"], True),
        (["<module>:9", "train:5"], ["<module>:20", "train:5"], False),  # the same function, called elsewhere
        (["main:3", "train:5"], ["main:4", "train:5"], False),
        (["train:5"], [], False),
    ],
)
def test_same_place(recorded, here, same):
    def site(places):
        return [["file.py", *place.split(":")] for place in places]

    assert frames.same_place(site(recorded), site(here)) is same


class TestWhoseFileItIs:
    """The nearest folder decides: a project has its `.venv` inside, a program may lie among installed packages."""

    @pytest.fixture(autouse=True)
    def own_folders(self, monkeypatch):
        monkeypatch.setattr(frames, "_programs", set())
        monkeypatch.setattr(frames, "_LIBRARIES", ("/project/.venv/lib/site-packages/", "/lib/python3/"))
        frames.is_user_file.cache_clear()
        yield
        frames.is_user_file.cache_clear()

    def test_libraries_in_the_program_folder_are_not_the_users(self):
        frames.add_program_folder("/project")
        assert frames.is_user_file("/project/train.py")
        assert frames.is_user_file("/project/models/net.py")
        assert not frames.is_user_file("/project/.venv/lib/site-packages/torch/nn/modules/linear.py")

    def test_a_program_among_libraries_is_the_users(self):
        frames.add_program_folder("/lib/python3/examples")
        assert frames.is_user_file("/lib/python3/examples/train.py")
        assert not frames.is_user_file("/lib/python3/json/decoder.py")


class TestFollowedLibraries:
    """A library may drive the loop: its frames belong to the program where they lie inside one of the user's."""

    def test_which_files(self):
        assert frames.is_followed(__file__)
        assert frames.is_followed("/anywhere/lib/site-packages/lightlike/loops.py")
        assert not frames.is_user_file("/anywhere/lib/site-packages/lightlike/loops.py")
        assert not frames.is_followed("/anywhere/lib/site-packages/torch/optim/sgd.py")
        assert not frames.is_followed("/anywhere/lib/site-packages/tqdm/std.py")
        assert not frames.is_followed("/anywhere/lib/site-packages/fast/native.so")
        assert not frames.is_followed(functools.__file__)

    def test_which_frames(self):
        def code(text, name):
            made = {}
            exec(compile(text, f"/anywhere/site-packages/{name}/loops.py", "exec"), made)
            return made["call"]

        drive = code("def call(then):\n    return then()", "lightlike")
        start = code("def call(then):\n    return then()", "hydra")

        def inner():
            return [user.frame.f_code.co_name for user in frames.user_frames(here())]

        def middle():
            return start(lambda: drive(inner))

        found = drive(middle)
        assert found[:6] == ["inner", "call", "<lambda>", "middle", "call", "test_which_frames"]
