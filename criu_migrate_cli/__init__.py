"""The command criu-migrate: runs migrate.yml through ansible-runner, and reads what it left in results/."""
