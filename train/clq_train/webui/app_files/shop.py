"""A small shop in Django's own administration, and a site in Wagtail's: `shop.py setup`, `shop.py serve PORT`."""

import random
import sys

import django
from django.conf import settings

WAGTAIL = [
    "wagtail.contrib.forms", "wagtail.contrib.redirects", "wagtail.contrib.settings", "wagtail.embeds",
    "wagtail.sites", "wagtail.users", "wagtail.snippets", "wagtail.documents", "wagtail.images",
    "wagtail.search", "wagtail.admin", "wagtail", "modelcluster", "taggit",
]  # fmt: skip
settings.configure(
    DEBUG=True,
    SECRET_KEY="only-for-screenshots",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        *WAGTAIL, "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
        "django.contrib.sessions", "django.contrib.messages", "django.contrib.staticfiles",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware", "django.contrib.auth.middleware.AuthenticationMiddleware",
        f"{__name__}.sign_in", "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[{
        "BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
        "OPTIONS": {"context_processors": [
            "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ]},
    }],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}},
    STATIC_URL="/static/", MEDIA_ROOT="media", MEDIA_URL="/media/", USE_TZ=True, WAGTAIL_SITE_NAME="Harbour",
    WAGTAILADMIN_BASE_URL="http://127.0.0.1", DEFAULT_AUTO_FIELD="django.db.models.AutoField",
)  # fmt: skip
django.setup()

from django.contrib import admin  # noqa: E402
from django.contrib.auth import get_user_model  # noqa: E402
from django.contrib.auth.models import Group  # noqa: E402
from django.contrib.staticfiles.urls import staticfiles_urlpatterns  # noqa: E402
from django.core.management import call_command, execute_from_command_line  # noqa: E402
from django.urls import include, path  # noqa: E402
from django_tasks import base  # noqa: E402
from wagtail.admin import urls as wagtail_urls  # noqa: E402
from wagtail.documents import urls as document_urls  # noqa: E402

# Index and references of a new page are tasks of a library that Python 3.11.7 and older can't run.
base.Task.enqueue = lambda *_, **__: None
NAMES = [
    "ada",
    "jon",
    "mina",
    "luis",
    "ivy",
    "omar",
    "sofia",
    "kofi",
    "nora",
    "pavel",
    "yuki",
    "emma",
]


def sign_in(get_response):
    """Everybody is the first user, who may do everything."""

    def respond(request):
        request.user = get_user_model().objects.first()
        return get_response(request)

    return respond


urlpatterns = [
    path("admin/", admin.site.urls), path("cms/", include(wagtail_urls)), path("documents/", include(document_urls)),
    *staticfiles_urlpatterns(),
]  # fmt: skip


def setup():
    call_command("migrate", verbosity=0)
    users, rng = get_user_model(), random.Random(1)
    users.objects.create_superuser("admin", "admin@example.com", "admin", first_name="Ada")
    for name in NAMES:
        users.objects.create_user(
            name, f"{name}@example.com", first_name=name.title(), is_staff=rng.random() < 0.4
        )
    for name in ("Buyers", "Readers", "Partners"):
        Group.objects.create(name=name)
    from wagtail.models import Page

    home = Page.objects.get(depth=2)
    for title in ("About the harbour", "Opening hours", "Prices", "Contact", "News", "Boat trips"):
        home.add_child(
            instance=Page(
                title=title, slug=title.lower().replace(" ", "-"), live=rng.random() < 0.7
            )
        )


if sys.argv[1] == "setup":
    setup()
else:
    execute_from_command_line(
        ["shop.py", "runserver", "--noreload", "--insecure", f"127.0.0.1:{sys.argv[2]}"]
    )
