"""Debian's docker-registry on loopback, plain and by TLS, over one storage."""

import http.client
import io
import shutil
import socket
import subprocess
import sys
import time

from .kits import MANIFEST, MIB, Kit, digest_of, manifest
from .processes import end


class Registry:
    def __init__(self, folder, environment, stack):
        self.folder = folder
        self.environment = environment
        self.stack = stack
        self.storage = folder / "registry"
        self.host = self.serve("plain", "")

    def serve(self, name, more):
        """Starts a registry over the storage and says where it listens."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        host = f"127.0.0.1:{port}"
        config, log_path = self.folder / f"{name}.yml", self.folder / f"{name}.log"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.storage}}}}}\nhttp: {{addr: '{host}'{more}}}\n"
        )
        log = self.stack.enter_context(open(log_path, "w", encoding="utf-8"))
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log, env=self.environment, start_new_session=True)
        self.stack.callback(end, process)
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                return host
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"docker-registry does not start: {log_path.read_text()}")
                time.sleep(0.02)

    def serve_tls(self):
        """The same blobs by TLS; says where, and the file with the CA."""
        ca, key, request, certificate = (self.folder / name for name in ["ca.pem", "tls.key", "tls.csr", "tls.pem"])
        more = self.folder / "tls.ext"
        more.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        for command in [
            ["req", "-x509", *curve, "-keyout", f"{ca}.key", "-out", ca, "-days", "2", "-subj", "/CN=a CA for one run"],
            ["req", *curve, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1"],
            ["x509", "-req", "-in", request, "-CA", ca, "-CAkey", f"{ca}.key", "-CAcreateserial", "-out", certificate, "-days", "2", "-extfile", more],
        ]:
            subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
        return self.serve("tls", f", tls: {{certificate: {certificate}, key: {key}}}"), ca

    def push(self, name, layers, tag="v1"):
        """Uploads a kit; the file of each layer goes before the next one is asked for."""
        there = []
        for layer in layers:
            with open(layer.file, "rb") as file:
                self.upload(name, layer.digest, file, layer.size)
            layer.file.unlink()
            there.append(layer)
        about, config = manifest(name, there)
        self.upload(name, digest_of(config), io.BytesIO(config), len(config))
        kit = Kit(self.host, name, tag, about, there)
        self.tag(kit, tag)
        return kit

    def tag(self, kit, tag):
        self.send("PUT", f"/v2/{kit.name}/manifests/{tag}", kit.manifest, len(kit.manifest), MANIFEST)

    def forget(self, kit):
        """Gives the disk back that a kit's layers take."""
        for layer in kit.layers:
            number = layer.digest.split(":")[1]
            shutil.rmtree(self.storage / "docker/registry/v2/blobs/sha256" / number[:2] / number, ignore_errors=True)

    def upload(self, name, digest, body, size):
        place = self.send("POST", f"/v2/{name}/blobs/uploads/")[0]["Location"]
        place = place[place.index("/v2/") :]
        self.send("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}", body, size)

    def send(self, method, path, body=b"", size=0, kind="application/octet-stream", accept="*/*"):
        """Headers and content of the answer."""
        connection = http.client.HTTPConnection(self.host, timeout=120, blocksize=MIB)
        connection.request(method, path, body, {"Content-Length": str(size), "Content-Type": kind, "Accept": accept})
        response = connection.getresponse()
        said = response.read()
        if response.status not in (200, 201, 202):
            sys.exit(f"{method} {path}: {response.status} {said!r}")
        return response.headers, said
