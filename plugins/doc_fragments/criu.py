"""Options that the modules around criu share."""

from __future__ import annotations


class ModuleDocFragment:
    """Named as ``criu.migrate.criu``; a clone is the collection criu.migrate too."""

    DOCUMENTATION = r"""
options:
  images_dir:
    description:
      - Directory of CRIU's images. It is made with mode 0700, for images hold the whole memory of a process; one that
        is open to other users is refused unless it is empty, and then closed.
    type: path
    required: true
  work_dir:
    description:
      - Directory of CRIU's logs, statistics and sockets. The default is O(images_dir).
    type: path
  criu_path:
    description: The criu binary, where it is not in the system's path.
    type: path
author: criu.migrate contributors
"""

    OPTIONS = r"""
options:
  options:
    description: What dump and restore have to agree on; the names are CRIU's own.
    type: dict
    suboptions:
      tcp_established:
        description: Keep established TCP connections.
        type: bool
        default: true
      tcp_close:
        description: Close established TCP connections in the restored process. Wins over O(options.tcp_established).
        type: bool
        default: false
      file_locks:
        description: Keep file locks.
        type: bool
        default: true
      ext_unix_sk:
        description: Allow unix sockets whose other end is outside the tree.
        type: bool
        default: true
      link_remap:
        description: Allow open files that were removed but have other names.
        type: bool
        default: true
      shell_job:
        description: The process belongs to a terminal's session.
        type: bool
        default: false
      ghost_limit:
        description: Largest removed file that travels inside the images, in bytes.
        type: int
        default: 67108864
      network_lock:
        description: How CRIU keeps packets away meanwhile.
        type: str
        choices: [nftables, iptables, skip]
        default: nftables
      extra:
        description: Further words for CRIU's command line.
        type: list
        elements: str
        default: []
"""

    PAGES = r"""
options:
  page_server:
    description: Send the memory to, or get it from, this page server instead of O(images_dir).
    type: dict
    suboptions:
      address:
        description: Its IP address.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        required: true
      tls:
        description:
          - PEM files on this node for a mutually authenticated, encrypted connection. The names in the certificates are
            not checked, so the CA must have been made for this one purpose.
        type: dict
        suboptions:
          ca:
            description: Certificate of the CA.
            type: path
            required: true
          cert:
            description: Certificate of this node.
            type: path
            required: true
          key:
            description: Private key of this node.
            type: path
            required: true
"""
