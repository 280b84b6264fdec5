// Command keel starts, inspects and stops Keelson clusters on this machine.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"keelson.dev/tools/keel/internal/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(command.Run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
