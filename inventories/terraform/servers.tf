# Add this to the configuration that makes the instances: it writes the servers.yaml that criu-migrate reads.
# local.nodes stands for your instances: zone => list of { ip, name }, with at least two of them.

variable "criu_migrate_dir" {
  description = "The clone of criu-migrate, in which servers.yaml is written"
  type        = string
  default     = "."
}

variable "ssh_user" {
  type    = string
  default = "ubuntu"
}

variable "ssh_key" {
  type    = string
  default = "~/.ssh/id_ed25519"
}

locals {
  nodes = {
    az_a = [for instance in aws_instance.az_a : { ip = instance.private_ip, name = instance.tags["Name"] }]
    az_c = [for instance in aws_instance.az_c : { ip = instance.private_ip, name = instance.tags["Name"] }]
  }
}

resource "local_file" "servers" {
  filename        = "${var.criu_migrate_dir}/servers.yaml"
  file_permission = "0644"
  content = templatefile("${path.module}/servers.yaml.tftpl", {
    ssh_user    = var.ssh_user
    ssh_key     = var.ssh_key
    source      = local.nodes.az_a[0]
    destination = local.nodes.az_a[1]
    all_nodes   = local.nodes
  })
}
