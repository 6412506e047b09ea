// This file holds upgraded connections: bytes in both directions until either
// side has ended.

package request

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// lastWords is how long one side of an upgraded connection may go on after
// the other has ended.
const lastWords = 2 * time.Second

// tunnel joins client and application after a 101 (RFC 9110 §15.2.2).
func (e *exchange) tunnel(ctx context.Context, res *http.Response) {
	far, ok := res.Body.(io.ReadWriteCloser)
	if !ok || !e.upgrade || !strings.EqualFold(res.Header.Get("Upgrade"), "websocket") {
		e.s.log.Warn("application switches to a protocol that nobody asked for")
		e.answer(http.StatusBadGateway)
		return
	}
	near, buffered, err := http.NewResponseController(e.w).Hijack()
	if err != nil {
		e.failed(err)
		return
	}
	defer near.Close()
	near.SetDeadline(time.Time{})
	e.status = http.StatusSwitchingProtocols
	stop := context.AfterFunc(ctx, func() {
		far.Close()
		e.c.cut()
	})
	defer stop()
	dropHopByHop(res.Header)
	res.Header["Connection"], res.Header["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	if err := writeSwitch(near, res.Header); err != nil {
		return
	}
	ended := make(chan int64, 2)
	go func() {
		copyThrough(far, drained(buffered.Reader, near))
		ended <- 0
	}()
	go func() { ended <- copyThrough(near, far) }()
	e.sent += <-ended
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	select {
	case n := <-ended:
		e.sent += n
		return
	case <-timer.C:
	}
	far.Close()
	e.c.cut()
	e.sent += <-ended
}

func writeSwitch(w io.Writer, h http.Header) error {
	b := bufio.NewWriterSize(w, 1<<10)
	_, err := io.WriteString(b, "HTTP/1.1 101 Switching Protocols\r\n")
	return errors.Join(err, h.Write(b), writeEnd(b))
}

func writeEnd(b *bufio.Writer) error {
	if _, err := io.WriteString(b, "\r\n"); err != nil {
		return err
	}
	return b.Flush()
}

// drained reads what was read ahead, and then the connection itself.
func drained(ahead *bufio.Reader, c io.Reader) io.Reader {
	if n := ahead.Buffered(); n > 0 {
		b, _ := ahead.Peek(n)
		return io.MultiReader(strings.NewReader(string(b)), c)
	}
	return c
}

// copyThrough copies and ignores why it ended.
func copyThrough(to io.Writer, from io.Reader) int64 {
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	n, _ := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, b[:])
	return n
}
