import java.net.InetAddress;
import java.net.ServerSocket;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/** A server with a pool of threads and a timer; it says how often it was asked. */
public class Program {
    public static void main(String[] arguments) throws Exception {
        byte[] kept = new byte[32 << 20];
        kept[1 << 20] = 7;
        AtomicLong ticks = new AtomicLong();
        AtomicLong count = new AtomicLong();
        ScheduledExecutorService pool = Executors.newScheduledThreadPool(4);
        pool.scheduleAtFixedRate(ticks::incrementAndGet, 0, 50, TimeUnit.MILLISECONDS);
        int port = Integer.parseInt(System.getenv("PORT"));
        try (ServerSocket server = new ServerSocket(port, 50, InetAddress.getByName("127.0.0.1"))) {
            while (true) {
                try (var socket = server.accept()) {
                    long answer = pool.submit(count::incrementAndGet).get();
                    socket.getOutputStream().write((kept[1 << 20] == 7 ? "" + answer : "wrong").getBytes());
                }
            }
        }
    }
}
