"""wasmtime's command line, as far as pv-net uses it: wasmtime run -C cache=n -S GRANT=y|n,... --env NAME=VALUE MODULE [ARGUMENT...]

The command itself is in no package of Debian, and takes seven minutes to build. Its library is in a wheel of PyPI, which
this calls. Only components are run: sockets are those of wasi:sockets 0.2. The library grants TCP and UDP together.
"""

import sys

from wasmtime import Engine, ExitTrap, Store, WasiConfig
from wasmtime import _bindings as c
from wasmtime.component import Component, Linker

GRANTS = {"inherit-network", "tcp", "udp", "allow-ip-name-lookup"}


def main(words):
    if words[:1] != ["run"]:
        sys.exit("wasmtime: only `run` is known here")
    words, grants, env = words[1:], {}, []
    while words and words[0].startswith("-"):
        flag, value, words = words[0], words[1], words[2:]
        if flag == "-S":
            for grant in value.split(","):
                name, _, is_granted = grant.partition("=")
                if name not in GRANTS or is_granted not in ("y", "n"):
                    sys.exit(f"wasmtime: -S {grant}: not known here")
                grants[name] = is_granted == "y"
        elif (flag, value) == ("-C", "cache=n"):
            pass  # The library has no cache.
        elif flag == "--env":
            env.append(value.split("=", 1))
        else:
            sys.exit(f"wasmtime: {flag}: not known here")
    wasi = WasiConfig()
    wasi.argv = words
    wasi.env = env
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    if grants.get("inherit-network") and (grants.get("tcp") or grants.get("udp")):
        c.wasi_config_inherit_network(wasi.ptr())
    c.wasi_config_allow_ip_name_lookup(wasi.ptr(), grants.get("allow-ip-name-lookup", False))
    engine = Engine()
    linker, store = Linker(engine), Store(engine)
    linker.add_wasip2()
    store.set_wasi(wasi)
    component = Component.from_file(engine, words[0])
    instance = linker.instantiate(store, component)
    names = (f"wasi:cli/run@0.2.{patch}" for patch in range(32))
    found = next(filter(None, (instance.get_export_index(store, name) for name in names)), None)
    if found is None:
        sys.exit(f"wasmtime: {words[0]}: no command")
    run = instance.get_func(store, instance.get_export_index(store, "run", found))
    try:
        done = run(store)
    except ExitTrap as trap:
        sys.exit(trap.code)
    # The command has this exit status for a module that says that it has failed.
    if done.tag == "err":
        sys.exit(1)


main(sys.argv[1:])
