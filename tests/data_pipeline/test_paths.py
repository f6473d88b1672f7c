"""Names from annotation files stay inside the folder that the user named."""

import pytest

from nlnet_d2.data.paths import safe_join


@pytest.mark.parametrize(
    ("root", "name", "match"),
    [
        ("", "a.jpg", "the folder is empty"),
        ("images", "", "expected a relative file name, got ''"),
        ("images", 7, "expected a relative file name, got 7"),
        *(
            ("images", name, "expected a relative path with forward slashes")
            for name in (
                "/etc/passwd",
                "C:/a.jpg",
                "c:a.jpg",
                "file:///a.jpg",
                "s3://x/a.jpg",
                "a\0.jpg",
                "a\\b",
            )
        ),
        *(
            ("images", name, "expected a file inside")
            for name in ("..", ".", "../a.jpg", "a/../../b.jpg", "a/..")
        ),
    ],
)
def test_names_that_lead_elsewhere(root, name, match):
    with pytest.raises(ValueError, match=match):
        safe_join(root, name)


@pytest.mark.parametrize(
    "name", ["a.jpg", "a/b/c.jpg", "..a/b.jpg", "a/../b.jpg", "12:30.jpg", "a b;$(c).jpg"]
)
def test_names_inside(name):
    assert safe_join("images", name) == f"images/{name}"
