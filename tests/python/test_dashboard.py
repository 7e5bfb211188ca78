"""The dashboard in a real browser, over a real cluster on loopback. Run by `scripts/test dashboard`."""

import json
import os
import re
import subprocess
import unittest
import urllib.error
import urllib.request

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from cluster import KVHIVE, Cluster

CHROMIUM = os.environ["CHROMIUM_BIN"]
# Where pictures go, if anywhere.
SHOTS = os.environ.get("KVHIVE_SHOTS")
# How long the browser waits for what must come; never waited out.
PATIENCE_MS = 60_000
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


class Dashboard(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        shape = ["--coordinators", "3", "--nodes", "2", "--devices", "2", "--replicas", "2"]
        sizes = ["--device-memory", "16MiB", "--host-memory", "16MiB", "--disk", "32MiB"]
        cls.cluster = Cluster(cls, *shape, *sizes)
        cls.folder, cls.admin, cls.token = cls.cluster.folder, cls.cluster.admin, cls.cluster.token
        cls.url = cls.admin[0]
        cls.playwright = sync_playwright().start()
        cls.addClassCleanup(cls.playwright.stop)
        cls.browser = cls.playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        cls.addClassCleanup(cls.browser.close)
        cls.cluster.kvhive("replay", "--requests", "60")

    def page(self, width=1280, height=900, **more):
        """Opens a page that counts what must never happen: requests to others, forbidden loads, errors."""
        context = self.browser.new_context(viewport={"width": width, "height": height}, **more)
        self.addCleanup(context.close)
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script("addEventListener('securitypolicyviolation', (event) => console.error(`POLICY ${event.violatedDirective} ${event.blockedURI}`));")
        page = context.new_page()
        self.strangers, self.faults = [], []
        page.on("request", lambda request: None if request.url.startswith(self.url + "/") else self.strangers.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda line: self.faults.append(line.text) if "POLICY" in line.text or "Content Security" in line.text else None)
        page.goto(self.url + "/")
        return page

    def signed_in(self, routes=None, **more):
        page = self.page(**more)
        for path, answer in (routes or {}).items():
            page.route(path, answer)
        page.get_by_label("Token").fill(self.token)
        page.keyboard.press("Enter")
        expect(page.locator(".node")).to_have_count(2, timeout=PATIENCE_MS)
        expect(page.locator("#tenants tbody tr")).not_to_have_count(0, timeout=PATIENCE_MS)
        expect(page.locator("#slots .said")).to_contain_text("4096 slots", timeout=PATIENCE_MS)
        return page

    def check_quiet(self):
        self.assertEqual((self.strangers, self.faults), ([], []))

    def ask(self, path, **headers):
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def test_files_come_without_a_token_and_data_does_not(self):
        for path, kind in [("/", "text/html"), ("/dashboard/main.js", "text/javascript"), ("/dashboard/style.css", "text/css"), ("/dashboard/icon.svg", "image/svg+xml")]:
            status, headers, body = self.ask(path)
            self.assertEqual(status, 200)
            self.assertTrue(headers["content-type"].startswith(kind), headers)
            self.assertIn("default-src 'self'", headers["content-security-policy"])
            self.assertEqual(headers["x-content-type-options"], "nosniff")
            self.assertNotIn(self.token.encode(), body)
            self.assertEqual(self.ask(path, **{"if-none-match": headers["etag"]})[0], 304)
        self.assertEqual(self.ask("/dashboard/../token")[0], 404)
        self.assertEqual(self.ask("/dashboard/none.js")[0], 404)
        self.assertEqual(self.ask("/v1/cluster")[0], 401)

    def test_a_wrong_token_is_refused_plainly_and_not_kept(self):
        page = self.page()
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#sign-in-trouble")).to_have_text("This coordinator does not know that token.")
        page.get_by_label("Token").fill("ümlaut")
        page.keyboard.press("Enter")
        expect(page.locator("#sign-in-trouble")).to_have_text("A token is one word of plain characters.")
        self.assertIsNone(page.evaluate("sessionStorage.getItem('kvhive.token')"))
        expect(page.locator("#panels")).to_be_hidden()
        self.check_quiet()

    def test_every_panel_shows_the_cluster(self):
        page = self.signed_in()
        expect(page.locator(".device")).to_have_count(4)
        expect(page.locator("#coordinators tbody tr")).to_have_count(3)
        expect(page.locator("#coordinators tbody tr", has_text="voter")).to_have_count(3)
        expect(page.locator("#tenants tbody")).to_contain_text("default")
        expect(page.locator("#events-state")).to_have_text("live")
        expect(page.locator("#events")).to_contain_text("cluster-started")
        expect(page.locator("#health")).not_to_have_text("")
        # Three tiers of each device, and figures that say what the bars show.
        expect(page.get_by_role("meter")).to_have_count(12)
        self.assertRegex(page.get_by_role("meter").first.get_attribute("aria-valuetext"), r" of 16\.0 MiB$")
        # Load makes rates.
        replay = subprocess.Popen([KVHIVE, "replay", "--requests", "400", "--dir", self.folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(replay.wait)
        self.addCleanup(replay.kill)
        shown = page.locator(".chart-now")
        expect(shown.nth(0)).to_have_text(re.compile(r"^\d+\.\d %$"), timeout=PATIENCE_MS)
        expect(shown.nth(2)).to_have_text(re.compile(r"iB/s"), timeout=PATIENCE_MS)
        expect(shown.nth(3)).to_have_text(re.compile(r"[µm]?s · "), timeout=PATIENCE_MS)
        expect(page.locator("#hot tbody tr")).not_to_have_count(0, timeout=PATIENCE_MS)
        expect(page.locator("#scaling")).to_contain_text("2 members")
        page.locator("summary").first.click()
        expect(page.locator("#figures tbody tr").first).to_be_visible()
        self.check_quiet()

    def test_everything_is_done_by_keyboard(self):
        page = self.page()
        expect(page.get_by_label("Token")).to_be_focused()
        page.keyboard.type(self.token)
        page.keyboard.press("Enter")
        expect(page.locator("#slots .said")).to_contain_text("4096 slots", timeout=PATIENCE_MS)
        expect(page.locator("#content")).to_be_focused()
        comb = page.locator(".comb")
        comb.focus()
        page.keyboard.press("Home")
        expect(page.locator("#slots .said")).to_contain_text("Slot 0: primary")
        page.keyboard.press("ArrowDown")
        expect(page.locator("#slots .said")).to_contain_text("Slot 64: primary")
        page.keyboard.press("Escape")
        expect(page.locator("#slots .said")).to_contain_text("4096 slots")
        chart = page.get_by_role("img", name=re.compile("^Bandwidth"))
        expect(page.locator("#figures tbody tr")).not_to_have_count(0)
        chart.focus()
        page.keyboard.press("Home")
        expect(page.locator(".chart .cross[visibility=visible]")).to_have_count(1)
        head = page.locator("#coordinators thead button").first
        head.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#coordinators thead th").first).to_have_attribute("aria-sort", "ascending")
        page.locator(".device").first.focus()
        page.get_by_role("button", name=re.compile("^Theme")).focus()
        page.keyboard.press("Enter")
        expect(page.locator("html")).to_have_attribute("data-theme", "light")
        page.keyboard.press("Enter")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        expect(page.locator(".node")).to_have_count(2)
        page.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Go on")).to_be_focused()
        page.get_by_role("button", name="Sign out").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_label("Token")).to_be_focused()
        self.assertIsNone(page.evaluate("sessionStorage.getItem('kvhive.token')"))
        self.check_quiet()

    def check_fits(self, page, width):
        """Nothing is wider than the page, but what scrolls by itself."""
        wide = page.evaluate("""() => [...document.querySelectorAll('body *')].filter((one) => {
            if (one.getBoundingClientRect().right <= innerWidth) return false;
            for (let around = one.parentElement; around; around = around.parentElement)
                if (getComputedStyle(around).overflowX !== 'visible') return false;
            return true;
        }).map((one) => one.outerHTML.slice(0, 200))""")
        self.assertEqual((wide, page.evaluate("document.documentElement.scrollWidth")), ([], width))

    def test_it_is_readable_at_every_width_in_both_themes(self):
        for width in (1280, 390):
            for theme in ("light", "dark"):
                with self.subTest(width=width, theme=theme):
                    page = self.signed_in(width=width, color_scheme=theme, reduced_motion="reduce")
                    expect(page.locator("#events .event").first).to_be_visible()
                    self.check_fits(page, width)
                    self.assertEqual(page.evaluate("getComputedStyle(document.querySelector('.fill')).transitionDuration"), "0s")
                    for details in page.locator("details").all():
                        details.locator("summary").click()
                    self.check_fits(page, width)
                    said = Axe().run(page, options={"runOnly": RULES}).response
                    self.assertGreater(len(said["passes"]), 10, "the rules were looked at")
                    found = said["violations"]
                    told = [f"{one['id']}: {node['html'][:160]} {node['failureSummary']}" for one in found for node in one["nodes"]]
                    self.assertEqual(told, [])
                    self.check_quiet()
                    if SHOTS:
                        page.screenshot(path=os.path.join(SHOTS, f"test-{width}-{theme}.png"), full_page=True)
                    page.context.close()

    def test_signing_in_is_readable(self):
        page = self.page(width=390)
        expect(page.get_by_label("Token")).to_be_focused()
        self.assertEqual(Axe().run(page, options={"runOnly": RULES}).response["violations"], [])

    def test_what_is_said_is_shown_as_text(self):
        page = self.signed_in()
        words = "<img src=x onerror=alert(1)> <b>bold</b>"
        self.addCleanup(self.cluster.kvhive, "drain", "--undo", "node-2")
        body = json.dumps({"drains": True, "may_lose": True, "reason": words}).encode()
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/merge-patch+json"}
        request = urllib.request.Request(f"{self.url}/v1/members/node-2", data=body, method="PATCH", headers=headers)
        urllib.request.urlopen(request, timeout=30).close()
        event = page.locator(".event", has_text="drain-begun").first
        expect(event).to_contain_text(words)
        expect(page.locator(".event img, .event b")).to_have_count(0)
        expect(page.locator(".chip", has_text="draining")).to_have_count(1)
        expect(page.locator("#health")).to_contain_text("draining: node-2")
        page.get_by_label("Kind of event").select_option("drain-begun")
        expect(page.locator(".event", has_text="cluster-started")).to_have_count(0)
        self.check_quiet()

    def test_slots_on_their_way_are_an_arc_and_a_row(self):
        # What little there is to move here has gone before the page looks: so answers have three slots under way that are not.
        under_way = []

        def slots(route):
            body = route.fetch().json()
            pairs = [tuple(slot["replicas"]) for slot in body["slots"]]
            under_way[:] = pairs[0]
            alike = [slot for slot in body["slots"] if tuple(slot["replicas"]) == pairs[0]]
            for slot in body["slots"]:
                slot.pop("filling", None)
            for slot in alike[:3]:
                slot["filling"] = [slot["replicas"][1]]
            route.fulfill(json={**body, "moving": 3})

        def cluster(route):
            body = route.fetch().json()
            route.fulfill(json={**body, "slots": {**body["slots"], "moving": 3}})

        page = self.signed_in({re.compile(r"/v1/slots\?"): slots, re.compile(r"/v1/cluster$"): cluster}, width=390)
        row = page.locator("#moves tbody tr")
        expect(row).to_have_count(1, timeout=PATIENCE_MS)
        names = {device: page.locator(f'.node:has([data-device="{device}"]) h4').inner_text() for device in under_way}
        expect(row.locator("th, td")).to_have_text([*(f"{device} {names[device]}" for device in under_way), "3"])
        expect(page.get_by_role("table", name="Slots on their way")).to_be_visible()
        expect(page.locator("path.arc")).to_have_count(1)
        expect(page.locator("#slots .said")).to_contain_text("3 are being copied")
        self.check_fits(page, 390)
        page.unroute(re.compile(r"/v1/slots\?"))
        page.unroute(re.compile(r"/v1/cluster$"))
        expect(page.locator("#moves")).to_be_hidden(timeout=PATIENCE_MS)
        expect(page.locator("path.arc")).to_have_count(0)
        self.check_quiet()

    def test_a_coordinator_that_is_gone_is_told_with_where_the_others_are(self):
        page = self.signed_in()
        page.context.set_offline(True)
        alert = page.locator("#trouble")
        expect(alert).to_contain_text("does not answer since")
        others = alert.get_by_role("link").evaluate_all("links => links.map((link) => link.href)")
        self.assertEqual(sorted(others), sorted(f"{url}/" for url in self.admin[1:]))
        page.context.set_offline(False)
        expect(alert).to_be_hidden()
        self.check_quiet()

    def test_without_a_leader_it_shows_what_this_coordinator_knows(self):
        page = self.signed_in()
        problem = json.dumps({"type": "about:blank", "status": 503, "detail": "no leader is known"})
        page.route(re.compile(r"/v1/cluster$"), lambda route: route.fulfill(status=503, content_type="application/problem+json", body=problem))
        expect(page.locator("#trouble")).to_contain_text("The leader does not answer (no leader is known)")
        expect(page.locator(".node")).to_have_count(2)
        page.unroute(re.compile(r"/v1/cluster$"))
        expect(page.locator("#trouble")).to_be_hidden()

    def test_a_token_that_is_taken_back_ends_the_session(self):
        page = self.signed_in()
        page.route(re.compile(r"/v1/cluster$"), lambda route: route.fulfill(status=401, body="{}"))
        expect(page.locator("#sign-in-trouble")).to_have_text("This token is not accepted any more.")
        expect(page.locator("#panels")).to_be_hidden()
        self.assertIsNone(page.evaluate("sessionStorage.getItem('kvhive.token')"))

    def test_rates_and_streams_are_read_right(self):
        page = self.page()
        rates = page.evaluate("""async () => {
            const { History } = await import('/dashboard/history.js');
            const zero = { covered_keys: 0, fetched_blocks: 0, stored_blocks: 0, evicted_blocks: 0, written_bytes: 0 };
            const device = (device, matched, read, p99) => ({ device, traffic: { ...zero, matched_keys: matched, read_bytes: read, fetch_p99_us: p99 } });
            const history = new History();
            history.add(0, { devices: [device('1/0', 100, 1000, 5)] });
            history.add(2000, { devices: [device('1/0', 300, 5000, null), device('2/0', 9, 9, 7)] });
            history.add(4000, { devices: [device('1/0', 40, 600, null), device('2/0', 9, 9, 7)] });
            history.add(90000, { devices: [device('1/0', 50, 700, null)] });
            return history.points.map((point) => [point.asked, point.read, point.p99, point.hitRate]);
        }""")
        self.assertEqual(rates, [[None, None, 5, None], [100, 2000, 7, 0], [20, 300, 7, 0], [None, None, None, None]])
        events = page.evaluate("""async () => {
            const { EventParser } = await import('/dashboard/api.js');
            const parser = new EventParser();
            const text = ':\\n\\nid: 7\\r\\nevent: gap\\r\\ndata: {"a":\\r\\ndata: 1}\\r\\n\\r\\ndata:x\\n\\nid: 8\\ndata: half';
            return [...text].flatMap((letter) => parser.feed(letter));
        }""")
        self.assertEqual(events, [{"id": "7", "kind": "gap", "data": '{"a":\n1}'}, {"id": None, "kind": "message", "data": "x"}])


if __name__ == "__main__":
    unittest.main(verbosity=2)
