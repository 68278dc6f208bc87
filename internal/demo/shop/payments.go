package shop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// maxLine bounds a line of the payments protocol, in bytes.
const maxLine = 1024

// servePayments speaks first on every connection, then answers line by line:
//
//	                       payments <instance> ready
//	pay <token> <amount>   paid <token> <amount> <instance>
func (a App) servePayments(ctx context.Context, ln net.Listener) error {
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				failed <- err
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				a.serveLines(ctx, c)
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	}()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	err := ln.Close()
	<-failed //nolint:errcheck // that the listener was closed
	mu.Lock()
	for c := range open {
		// Ends a read that waits for a next line; an answer already begun is still written.
		err = errors.Join(err, c.SetReadDeadline(time.Now()))
	}
	mu.Unlock()
	wg.Wait()
	return err
}

func (a App) serveLines(ctx context.Context, c net.Conn) {
	defer c.Close()
	if _, err := fmt.Fprintf(c, "payments %s ready\n", a.Instance); err != nil {
		return
	}
	lines := bufio.NewScanner(c)
	lines.Buffer(make([]byte, 0, maxLine), maxLine)
	for ctx.Err() == nil && lines.Scan() {
		var answer string
		if f := strings.Fields(lines.Text()); len(f) == 3 && f[0] == "pay" {
			answer = fmt.Sprintf("paid %s %s %s\n", f[1], f[2], a.Instance)
		} else {
			answer = "error: want pay <token> <amount>\n"
		}
		if _, err := c.Write([]byte(answer)); err != nil {
			return
		}
	}
}
