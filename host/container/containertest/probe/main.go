// Command probe is what test containers run: one static program, the whole image.
//
//	probe wait                 live until told to end
//	probe shout ADDRESS...     send a datagram to each first of all, then live on, shouting
//	probe talk ADDRESS         keep one TCP connection busy; the exit code says it broke
//	probe serve PORT           answer TCP with what was said, and UDP
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		args = []string{"wait"}
	}
	ended := make(chan os.Signal, 1)
	switch {
	case args[0] == "shout":
		return shout(args[1:])
	case args[0] == "talk" && len(args) == 2:
		return talk(args[1])
	case args[0] == "serve" && len(args) == 2:
		return serve(args[1])
	case args[0] == "wait":
		signal.Notify(ended, syscall.SIGTERM, os.Interrupt)
		<-ended
		return nil
	}
	return errors.New("usage: probe wait | shout ADDRESS... | talk ADDRESS | serve PORT")
}

// shout sends at once, a hundred times a second for a second, and then now and
// then: there may be many of them.
func shout(addresses []string) error {
	pace := time.NewTicker(10 * time.Millisecond)
	for n := 0; ; n++ {
		for _, address := range addresses {
			conn, err := net.Dial("udp", address)
			if err != nil {
				continue // no route yet
			}
			fmt.Fprintf(conn, "%d", n)
			conn.Close()
		}
		if n == 100 {
			pace.Reset(500 * time.Millisecond)
		}
		<-pace.C
	}
}

// talk connects, however long it takes, and says and hears a byte a hundred times
// a second over that one connection.
func talk(address string) error {
	var conn net.Conn
	for {
		var err error
		if conn, err = net.DialTimeout("tcp", address, time.Second); err == nil {
			break
		}
	}
	fmt.Println("connected")
	one := make([]byte, 1)
	for range time.Tick(10 * time.Millisecond) {
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Write(one); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			return err
		}
	}
	return nil
}

func serve(port string) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}
